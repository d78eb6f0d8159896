"""Exports a model to a file that other programs can load: ONNX, TorchScript or safetensors.

The exported graph maps images to the features of `Embedder.embed`; text encoder, contexts and
classifier are not exported. A JSON sidecar describes the preprocessing. Before a file is moved to
its final name, it is loaded and compared with PyTorch on rendered people; then it is opened again.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from muva.model.bundle_description import CALIBRATION
from muva.model.export_formats import SUFFIXES, Form, InputFormat
from muva.synthetic import DOMAINS, render

SIDECAR_FORMAT = 1
SIDECAR, WEIGHTS = ".json", ".data"
"""Endings of the names of the sidecar, and of the weights of a large ONNX graph."""
FURTHER = (".metadata.json",)
"""Endings of further files that an earlier export may have written, for BoxMOT."""
INPUT, OUTPUT = "images", "features"
OPSET = 18
"""Opset of the ONNX graphs, which every runtime of recent years supports."""

DECODING = "RGB, upright by the EXIF orientation, without alpha, the upper 8 of 16 bits"
"""How images become pixels, see `muva.data.images.as_rgb`."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MAX_DIFFERENCE = 1e-4
"""Largest allowed difference between any feature value of the file and PyTorch's, in float32."""
MIN_COSINE_HALF = 0.99
"""Smallest allowed cosine similarity between a feature in half precision and in float32.

The difference of single values says little if rounding moves a patch to the other side of a gate.
"""
CHECKED_IMAGES = 8
_EDGE = 1e-4
"""Images with a mask logit closer to 0 are not used: rounding alone decides the patch's gate."""
_RENDERED = 64


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file and how it compares with PyTorch."""

    file: Path
    sidecar: Path
    weights_files: tuple[Path, ...]
    """The weights of an ONNX graph that are too large for its own file; keep them beside it."""
    largest_difference: float
    """Of any feature value from PyTorch's in float32."""
    least_cosine: float
    """Smallest cosine similarity of a feature and PyTorch's in float32."""
    images: int
    """Number of images compared."""


class RetrievalGraph(nn.Module):
    """The exported part of a model, in eval mode: maps images to retrieval features.

    With `half`, the image encoder is float16; images, BN neck and features stay float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, bundle: Bundle, *, takes: InputFormat = "normalised", half: bool = False):
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
        """Unit-length features (B, F), float32, of images in the format `takes`."""
        if self.takes == "hwc":
            images = images.permute(0, 3, 1, 2)
        if self.takes != "normalised":
            images = images.float() * self.scale + self.shift
        feature = self.image_encoder(images.to(self.dtype)).feature
        return normalize(self.bn_neck(feature.float()))


def _scale_and_shift(
    takes: InputFormat, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scale and shift that convert input images to the model's normalisation."""
    own_mean, own_std = np.array(mean), np.array(std)
    given_mean, given_std = own_mean, own_std
    if takes in ("hwc", "chw"):
        given_mean, given_std = np.zeros(3), np.full(3, 1 / 255)
    elif takes == "imagenet":
        given_mean, given_std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    elif takes == "unit":
        given_mean, given_std = np.zeros(3), np.ones(3)
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
    takes: InputFormat = "normalised",
    half: bool = False,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
    properties: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model's file and its sidecar `FILE.json`; on failure, neither.

    An ONNX graph whose weights do not fit into one file has them in `FILE.data`, beside it.

    Args:
        model: the model's address, recorded in the sidecar.
        beside: further JSON files to write: suffix of the name -> content.
        properties: further entries of the metadata of an ONNX file.
        overwrite: replace the files of an earlier export; on failure, they stay.

    Raises:
        SettingsError: the settings cannot be combined.
        MuvaError: a file exists, a library is missing, the file's features differ from PyTorch's,
            or it cannot be opened in its final place.
    """
    _check_settings(file, form, takes)
    sidecars: dict[str, Any] = {SIDECAR: {}, **(beside or {})}
    if not overwrite:
        check_absent(file, beside=beside or ())
    graph = RetrievalGraph(bundle, takes=takes, half=half)
    pixels = check_pixels(bundle)
    images = _as_input(pixels, bundle, takes)
    expected = bundle.embed_pixels(pixels)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=file.parent) as folder:
            made = Path(folder, "new", file.name)  # a graph names the file of its weights
            made.parent.mkdir()
            description = _description(bundle, form=form, model=model, takes=takes, half=half)
            if properties:
                description["properties"] = dict(properties)
            _WRITERS[form](graph, images, made, description)
            found = _features_of(made, graph, images, form)
            compared = _compare(found, expected, half=half, what=f"{model} as {form}")
            description["check"] = {**compared, "images": len(pixels)}
            written = {one.name: _sha256(one) for one in sorted(made.parent.iterdir())}
            description["sha256"] = written.pop(made.name)
            description["weights_files"] = written
            sidecars[SIDECAR] = description
            for ending, content in sidecars.items():
                Path(f"{made}{ending}").write_text(json.dumps(content, indent=2) + "\n")
            with _in_place(made.parent, file, kept=Path(folder, "old")):
                _check_opens(file, form=form, graph=graph, images=images, expected=found)
    except OSError as error:
        raise MuvaError(f"{file}: the export cannot be written: {error}") from error
    return Exported(
        file=file,
        sidecar=Path(f"{file}{SIDECAR}"),
        weights_files=tuple(file.with_name(name) for name in written),
        images=len(pixels),
        **compared,
    )


def check_absent(file: Path, *, beside: Iterable[str] = ()) -> None:
    """Raise MuvaError if a file that an export would write, or that belongs to one, exists."""
    existing = [one for one in _companions(file, beside) if one.exists()]
    if existing:
        raise MuvaError(
            f"{', '.join(map(str, existing))}: exists already. Choose another name, or replace the "
            "files of the earlier export with --overwrite"
        )


def _companions(file: Path, beside: Iterable[str]) -> list[Path]:
    """The files of an export by this name: the main one and all that can be beside it."""
    endings = dict.fromkeys((WEIGHTS, SIDECAR, *FURTHER, *beside))
    return [file, *(Path(f"{file}{ending}") for ending in endings)]


@contextmanager
def _in_place(made: Path, file: Path, *, kept: Path) -> Iterator[None]:
    """Move all files of a folder beside `file`; if the block fails, the earlier ones return.

    All files of an earlier export go, because those that are not replaced would describe this one
    wrongly.
    """
    kept.mkdir()
    moves = {one: file.with_name(one.name) for one in sorted(made.iterdir())}
    names = {one.name for one in (*moves, *_companions(file, ()))}
    try:
        for name in sorted(names):
            if file.with_name(name).exists():
                file.with_name(name).replace(kept / name)
        for one, place in moves.items():
            one.replace(place)
        yield
    except BaseException:
        for one, place in moves.items():
            if not one.exists():  # it has been moved
                place.unlink(missing_ok=True)
        for one in sorted(kept.iterdir()):
            one.replace(file.with_name(one.name))
        raise


def _check_opens(
    file: Path, *, form: Form, graph: RetrievalGraph, images: Tensor, expected: np.ndarray
) -> None:
    """Check that a file opens where it is, and gives the features that it gave before."""
    try:
        with torch.inference_mode():
            found = open_exported(file, form=form, graph=graph)(images)
    except Exception as error:  # each runtime has errors of its own
        raise MuvaError(
            f"{file}: the export cannot be opened in its final place: {error}. Nothing was written"
        ) from error
    difference = float(np.abs(found - expected[: len(images)]).max())
    if not difference <= MAX_DIFFERENCE:
        raise MuvaError(
            f"{file}: opened in its final place, the export's features differ by up to "
            f"{difference:.2g} from those before it was moved. Nothing was written"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_pixels(bundle: Bundle, *, count: int = CHECKED_IMAGES) -> Tensor:
    """Rendered people of several domains at the model's input size: uint8 (count, 3, H, W).

    With a hard gate, images with a mask logit near 0 are left out, because rounding would decide.

    Raises:
        MuvaError: every rendered image has such a logit.
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
            f"each of {_RENDERED} rendered people has a patch whose mask is undecided: the model's "
            "mask predictor has learned nothing, so an export could not be verified. Train the "
            "model first"
        )
    return torch.stack(found)


@torch.inference_mode()
def _on_edge(bundle: Bundle, pixels: Tensor) -> bool:
    encoder = bundle.model.image_encoder
    if encoder.mask_predictor is None or encoder.gating == "online":
        return False
    logits = encoder(bundle.pixels([pixels.permute(1, 2, 0).numpy()])).mask_logits
    return bool(logits.abs().min() < _EDGE)


def _as_input(pixels: Tensor, bundle: Bundle, takes: InputFormat) -> Tensor:
    """Convert uint8 images (B, 3, H, W) to the input format of a graph."""
    if takes == "chw":
        return pixels
    if takes == "hwc":
        return pixels.permute(0, 2, 3, 1).contiguous()
    if takes == "unit":
        return pixels.float() / 255
    statistics = (IMAGENET_MEAN, IMAGENET_STD) if takes == "imagenet" else (bundle.mean, bundle.std)
    mean, std = map(_per_channel, statistics)
    return (pixels.float() / 255 - mean) / std


def _check_settings(file: Path, form: Form, takes: InputFormat) -> None:
    if file.suffix.lower() not in SUFFIXES[form]:
        raise SettingsError(
            f"{file}: expected a file name ending in {' or '.join(SUFFIXES[form])} for {form}"
        )
    if form == "safetensors" and takes != "normalised":
        raise SettingsError(
            "safetensors stores weights but no graph that could preprocess images: expected onnx "
            "or torchscript"
        )
    missing = [name for name in _NEEDED[form] if importlib.util.find_spec(name) is None]
    if missing:
        raise MuvaError(
            f"exporting to {form} needs {', '.join(missing)}, which is not installed: "
            f"pip install {' '.join(missing)}"
        )


_NEEDED: Mapping[Form, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torchscript": (),
    "safetensors": (),
}


def _description(
    bundle: Bundle, *, form: Form, model: str, takes: InputFormat, half: bool
) -> dict[str, Any]:
    """The content of the sidecar, without the checks and the checksum of the file."""
    height, width = bundle.image_height, bundle.image_width
    statistics: dict[str, Any] = {"mean": list(bundle.mean), "std": list(bundle.std)}
    if takes == "imagenet":
        statistics = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    elif takes == "unit":
        statistics = {"mean": [0.0] * 3, "std": [1.0] * 3}
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
            "decoding": DECODING,
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
        **{key: bundle.metadata[key] for key in (CALIBRATION,) if key in bundle.metadata},
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
        for node in program.model.graph:  # they contain file paths of the exporting machine
            node.metadata_props.clear()
        program.model.metadata_props["muva"] = json.dumps(description)
        program.model.metadata_props.update(description.get("properties", {}))
        program.save(file)


def _write_torchscript(
    graph: RetrievalGraph, images: Tensor, file: Path, description: Mapping[str, Any]
) -> None:
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        traced: Any = torch.jit.trace(graph, (images,), check_trace=False)
        # Into memory, because torch ends the whole process if a disk is full.
        stored = io.BytesIO()
        torch.jit.save(traced, stored, _extra_files={"muva.json": json.dumps(description)})
    file.write_bytes(stored.getbuffer())


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


def open_exported(
    file: Path, *, form: Form, graph: RetrievalGraph
) -> Callable[[Tensor], np.ndarray]:
    """Load an exported file as a function, which runs on as many cores as torch may use.

    `graph` provides the architecture if the file has only weights.
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
    """The file's features of batches of all, one and three images: batch size must be dynamic."""
    features_of = open_exported(file, form=form, graph=graph)
    return np.concatenate([features_of(some) for some in (images, images[:1], images[:3])])


def _compare(found: np.ndarray, expected: np.ndarray, *, half: bool, what: str) -> dict[str, float]:
    """The largest difference and the least cosine similarity.

    Raises:
        MuvaError: the features differ from those expected.
    """
    expected = np.concatenate([expected, expected[:1], expected[:3]])
    difference = float(np.abs(found - expected).max())
    cosine = float((found.astype(np.float64) * expected).sum(axis=1).min())
    passes = cosine >= MIN_COSINE_HALF if half else difference <= MAX_DIFFERENCE
    if not passes or not np.isfinite(found).all():
        goal = (
            f"cosines of at least {MIN_COSINE_HALF}"
            if half
            else f"differences up to {MAX_DIFFERENCE}"
        )
        raise MuvaError(
            f"{what}: the features of rendered people differ from PyTorch's: differences up to "
            f"{difference:.2g}, cosines of at least {cosine:.6f}; expected {goal}. Nothing was "
            f"written"
        )
    return {"largest_difference": difference, "least_cosine": cosine}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, which are meant for their own developers."""
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
