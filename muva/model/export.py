"""A model as a file that other programs load: ONNX, TorchScript or safetensors.

What is exported takes images to the features that `Embedder.embed` gives; the text side, contexts
and classifier stay behind. A JSON beside the file says how images are prepared. Every file is
loaded again and compared with PyTorch on rendered people before it gets its name.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from muva.errors import MuvaError, SettingsError
from muva.model.bundle import Bundle
from muva.model.export_formats import SUFFIXES, Form, Takes
from muva.synthetic import DOMAINS, render

SIDECAR_FORMAT = 1
INPUT, OUTPUT = "images", "features"
OPSET = 18
"""Of the ONNX graphs: every runtime of the last years reads it."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MOST_APART = 1e-4
"""Largest difference between a number of the file's features and PyTorch's, in float32."""
LEAST_COSINE_IN_HALF = 0.99
"""Between a feature in half precision and the same in float32: how far numbers are apart says
little where a patch near the edge of a hard gate falls on its other side."""
CHECKED_IMAGES = 8
_EDGE = 1e-4
"""A patch whose mask logit is closer to 0 is in or out by rounding alone: no image to check by."""
_RENDERED = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written, and how it was found to compare with PyTorch."""

    file: Path
    sidecar: Path
    largest_difference: float
    """Of any number of a feature from PyTorch's in float32."""
    least_cosine: float
    """Of any feature with PyTorch's in float32."""
    images: int
    """That were compared."""


class RetrievalGraph(nn.Module):
    """Images to features for retrieval: what is exported of a model, in eval mode.

    `half`: the image encoder in float16; images, neck and features stay float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, bundle: Bundle, *, takes: Takes = "normalised", half: bool = False):
        super().__init__()
        self.image_encoder = copy.deepcopy(bundle.model.image_encoder).cpu()
        self.bn_neck = copy.deepcopy(bundle.model.bn_neck).cpu()
        self.takes = takes
        self.dtype = torch.float16 if half else torch.float32
        self.image_encoder.to(self.dtype)
        scale, shift = _scale_and_shift(takes, bundle.mean, bundle.std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, F) float32 of unit length, of images as `takes` says."""
        if self.takes == "hwc":
            images = images.permute(0, 3, 1, 2)
        if self.takes != "normalised":
            images = images.float() * self.scale + self.shift
        feature = self.image_encoder(images.to(self.dtype)).feature
        return normalize(self.bn_neck(feature.float()))


def _scale_and_shift(
    takes: Takes, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Images as given, times one and plus the other, are normalised with the model's statistics."""
    own_mean, own_std = np.array(mean), np.array(std)
    given_mean, given_std = own_mean, own_std
    if takes in ("hwc", "chw"):
        given_mean, given_std = np.zeros(3), np.full(3, 1 / 255)
    elif takes == "imagenet":
        given_mean, given_std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    scale, shift = given_std / own_std, (given_mean - own_mean) / own_std
    return _per_channel(scale), _per_channel(shift)


def _per_channel(values: Sequence[float] | np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def export(
    bundle: Bundle,
    file: Path,
    *,
    form: Form,
    model: str,
    takes: Takes = "normalised",
    half: bool = False,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
) -> Exported:
    """Write a model's file and its sidecar, `FILE.json`; both or neither.

    `model`: its address, for the sidecar. `beside`: further JSON files, ending of the name -> what
    they hold. Raises SettingsError for settings that do not go together, MuvaError where a library
    is missing and where the file's features are not PyTorch's.
    """
    _check_settings(file, form, takes)
    graph = RetrievalGraph(bundle, takes=takes, half=half)
    pixels = check_pixels(bundle)
    expected = bundle.embed_pixels(pixels)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
            made = Path(folder) / f"made{file.suffix}"
            description = _description(bundle, form=form, model=model, takes=takes, half=half)
            _WRITERS[form](graph, _as_taken(pixels, bundle, takes), made, description)
            found = _features_of(made, graph, _as_taken(pixels, bundle, takes), form)
            compared = _compared(found, expected, half=half, what=f"{model} as {form}")
            description["check"] = {**compared, "images": len(pixels)}
            description["sha256"] = hashlib.sha256(made.read_bytes()).hexdigest()
            sidecars = {".json": description, **(beside or {})}
            for ending, content in sidecars.items():
                (Path(folder) / f"made{ending}").write_text(json.dumps(content, indent=2) + "\n")
            for ending in sidecars:
                (Path(folder) / f"made{ending}").replace(f"{file}{ending}")
            made.replace(file)
    except OSError as error:
        raise MuvaError(f"{file} cannot be written: {error}") from error
    return Exported(file=file, sidecar=Path(f"{file}.json"), images=len(pixels), **compared)


def check_pixels(bundle: Bundle, *, count: int = CHECKED_IMAGES) -> Tensor:
    """(count, 3, H, W) uint8: rendered people of several domains, of the model's size.

    With a hard gate none of them has a patch on the gate's edge, where rounding decides.
    """
    found = []
    for number in range(_RENDERED):
        domain = list(DOMAINS)[number % len(DOMAINS)]
        size = {"height": bundle.image_height, "width": bundle.image_width}
        image = render(domain, pid=1 + number, camid=1 + number % 2, index=0, **size).image
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        if not _on_edge(bundle, pixels):
            found.append(pixels)
        if len(found) == count:
            break
    if not found:
        raise MuvaError(
            f"of {_RENDERED} rendered people each has a patch whose mask is undecided: the model's "
            "mask predictor has learned nothing, and an export could not be checked"
        )
    return torch.stack(found)


@torch.inference_mode()
def _on_edge(bundle: Bundle, pixels: Tensor) -> bool:
    encoder = bundle.model.image_encoder
    if encoder.mask_predictor is None or encoder.gating == "online":
        return False
    logits = encoder(bundle.pixels([pixels.permute(1, 2, 0).numpy()])).mask_logits
    return bool(logits.abs().min() < _EDGE)


def _as_taken(pixels: Tensor, bundle: Bundle, takes: Takes) -> Tensor:
    """uint8 (B, 3, H, W) as a graph takes them."""
    if takes == "chw":
        return pixels
    if takes == "hwc":
        return pixels.permute(0, 2, 3, 1).contiguous()
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if takes == "imagenet" else (bundle.mean, bundle.std)
    mean, std = map(_per_channel, statistics)
    return (pixels.float() / 255 - mean) / std


def _check_settings(file: Path, form: Form, takes: Takes) -> None:
    if file.suffix.lower() not in SUFFIXES[form]:
        raise SettingsError(
            f"{file}: expected a name that ends in {' or '.join(SUFFIXES[form])} for {form}"
        )
    if form == "safetensors" and takes != "normalised":
        raise SettingsError(
            "safetensors holds weights and no graph that could prepare images: expected onnx or "
            "torchscript"
        )
    missing = [name for name in _NEEDED[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise MuvaError(
            f"an export as {form} needs {', '.join(missing)}, which is not installed: "
            "pip install 'muva[export]'"
        )


_NEEDED: Mapping[Form, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torchscript": (),
    "safetensors": (),
}


def _description(
    bundle: Bundle, *, form: Form, model: str, takes: Takes, half: bool
) -> dict[str, Any]:
    """The sidecar, as far as it is known before the file is there."""
    height, width = bundle.image_height, bundle.image_width
    statistics: dict[str, Any] = {"mean": list(bundle.mean), "std": list(bundle.std)}
    if takes == "imagenet":
        statistics = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    in_graph = takes in ("hwc", "chw")
    return {
        "format_version": SIDECAR_FORMAT,
        "model": model,
        "form": form,
        "weights": "float16" if half else "float32",
        "input": {
            "name": INPUT,
            "dtype": "uint8" if in_graph else "float32",
            "shape": ["batch", height, width, 3] if takes == "hwc" else ["batch", 3, height, width],
            "channels": "RGB",
        },
        "preprocessing": {
            "height": height,
            "width": width,
            "interpolation": "bilinear",
            "antialias": True,
            "scale": 1 / 255,
            **statistics,
            "in_graph": in_graph,
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["batch", bundle.feature_dim],
            "unit_length": True,
        },
        "feature_dim": bundle.feature_dim,
        "settings": bundle.model.config.model_dump(mode="json"),
        "libraries": {name: version(name) for name in ("torch", *_NEEDED[form])},
    }


def _write_onnx(
    graph: RetrievalGraph, images: Tensor, file: Path, description: Mapping[str, Any]
) -> None:
    with _quiet():
        program = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
        )
        assert program is not None
        for node in program.model.graph:  # they tell where the exporting machine keeps its files
            node.metadata_props.clear()
        program.model.metadata_props["muva"] = json.dumps(description)
        program.save(file)


def _write_torchscript(
    graph: RetrievalGraph, images: Tensor, file: Path, description: Mapping[str, Any]
) -> None:
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        traced: Any = torch.jit.trace(graph, (images,), check_trace=False)
        traced.save(f"{file}", _extra_files={"muva.json": json.dumps(description)})


def _write_safetensors(
    graph: RetrievalGraph, images: Tensor, file: Path, description: Mapping[str, Any]
) -> None:
    tensors = {name: value.contiguous() for name, value in graph.state_dict().items()}
    file.write_bytes(save(tensors, metadata={"muva": json.dumps(description)}))


_WRITERS: Mapping[Form, Callable[[RetrievalGraph, Tensor, Path, Mapping[str, Any]], None]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "safetensors": _write_safetensors,
}


def opened(file: Path, *, form: Form, graph: RetrievalGraph) -> Callable[[Tensor], np.ndarray]:
    """What a file computes, on as many cores as torch may use.

    `graph` is the build that bare weights are put in.
    """
    if form == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            f"{file}", options, providers=["CPUExecutionProvider"]
        )
        return lambda images: np.asarray(session.run([OUTPUT], {INPUT: images.numpy()})[0])
    if form == "torchscript":
        with _quiet():
            module = torch.jit.load(f"{file}", map_location="cpu")
    else:
        module = copy.deepcopy(graph)
        for parameter in module.parameters():
            parameter.zero_()
        module.load_state_dict(load_file(file))
    return lambda images: module(images).numpy()


@torch.inference_mode()
def _features_of(file: Path, graph: RetrievalGraph, images: Tensor, form: Form) -> np.ndarray:
    """The file's features of all images, of one and of three: a graph may be bound to a number."""
    features_of = opened(file, form=form, graph=graph)
    return np.concatenate([features_of(some) for some in (images, images[:1], images[:3])])


def _compared(
    found: np.ndarray, expected: np.ndarray, *, half: bool, what: str
) -> dict[str, float]:
    """Raises MuvaError where the features are not those expected."""
    expected = np.concatenate([expected, expected[:1], expected[:3]])
    difference = float(np.abs(found - expected).max())
    cosine = float((found.astype(np.float64) * expected).sum(axis=1).min())
    passes = cosine >= LEAST_COSINE_IN_HALF if half else difference <= MOST_APART
    if not passes or not np.isfinite(found).all():
        goal = f"cosines of {LEAST_COSINE_IN_HALF}" if half else f"differences up to {MOST_APART}"
        raise MuvaError(
            f"{what}: its features are not PyTorch's on rendered people: differences up to "
            f"{difference:.2g}, cosines from {cosine:.6f}; expected {goal}. Nothing was written"
        )
    return {"largest_difference": difference, "least_cosine": cosine}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes to their own developers."""
    chatty = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    before = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, before, strict=True):
            logger.setLevel(level)
