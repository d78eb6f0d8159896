"""Exported files against the model in PyTorch, each opened as a program without muva opens it."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

import muva.model.export as exporting
from muva.errors import MuvaError, SettingsError
from muva.model.bundle import Bundle, bundle_of_model
from muva.model.export import IMAGENET_MEAN, IMAGENET_STD, Form, InputFormat, check_pixels, export
from muva.model.muva_model import MuvaModel
from muva.synthetic import render
from tests.model.small import IMAGE_SIZE, small_model

PARTS = ("head", "upper_body", "legs")
SUFFIX = {"onnx": ".onnx", "torchscript": ".torchscript", "safetensors": ".safetensors"}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
"""Differ by channel, so that channels that change places show."""


def bundle_of(**changed: Any) -> Bundle:
    """A model whose neck has seen something."""
    model = small_model(**{"mean": MEAN, "std": STD, **changed}).eval()
    generator = torch.Generator().manual_seed(1)
    width = model.feature_dim
    model.bn_neck.running_mean = 0.1 * torch.randn(width, generator=generator)
    model.bn_neck.running_var = 0.5 + torch.rand(width, generator=generator)
    return bundle_of_model(model, metadata={})


def people(count: int) -> np.ndarray:
    """(count, H, W, 3) uint8: others than the export compares with."""
    height, width = IMAGE_SIZE
    return np.stack(
        [
            render("syn-harbour", pid=200 + n, camid=1, index=1, height=height, width=width).image
            for n in range(count)
        ]
    )


def normalised(images: np.ndarray, mean: Any = MEAN, std: Any = STD) -> np.ndarray:
    values = (images / 255 - np.array(mean)) / np.array(std)
    return values.transpose(0, 3, 1, 2).astype(np.float32)


def run(file: Path, form: Form, images: np.ndarray, build: MuvaModel) -> np.ndarray:
    """The file's features; bare weights are put into another model of the same build."""
    if form == "onnx":
        session = onnxruntime.InferenceSession(f"{file}", providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {session.get_inputs()[0].name: images})[0])
    with torch.no_grad():
        if form == "torchscript":
            return torch.jit.load(f"{file}")(torch.from_numpy(images)).numpy()
        tensors = load_file(file)
        for part in ("image_encoder", "bn_neck"):
            mine = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(part)}
            build.get_submodule(part).load_state_dict(mine)
        return build.retrieval_features(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("form", ["onnx", "torchscript", "safetensors"])
@pytest.mark.parametrize(
    "settings",
    [
        {"gating": "offline"},
        {"gating": "online", "mask_temperature": 2.0},
        {"parts": ()},
        {"part_token_init": "patch_avg", "parts": ("legs",), "stride": 4},
    ],
    ids=["hard gate", "soft gate", "no parts", "averaged part tokens, overlapping patches"],
)
def test_a_file_gives_the_models_features_in_batches_of_any_length(
    form: Form, settings: dict[str, Any], tmp_path: Path
) -> None:
    bundle = bundle_of(**settings)
    file = tmp_path / f"model{SUFFIX[form]}"
    done = export(bundle, file, form=form, model="models/small-0123456789abcdef")
    assert done.largest_difference < 1e-5
    build = small_model(**{"mean": MEAN, "std": STD, **settings}, seed=9).eval()
    images = people(5)
    expected = bundle.embed(list(images))
    for count in (1, 2, 5):
        found = run(file, form, normalised(images[:count]), build)
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)
    sidecar = json.loads(Path(f"{file}.json").read_text())
    assert sidecar["preprocessing"]["mean"] == pytest.approx(MEAN)
    assert sidecar["preprocessing"]["std"] == pytest.approx(STD)
    size = (sidecar["preprocessing"]["height"], sidecar["preprocessing"]["width"])
    assert (size, sidecar["feature_dim"]) == (IMAGE_SIZE, bundle.feature_dim)
    assert sorted(path.name for path in tmp_path.iterdir()) == [file.name, f"{file.name}.json"]


def test_the_sidecar_has_the_models_calibration(tmp_path: Path) -> None:
    bundle = bundle_of()
    assert "calibration" not in bundle.metadata
    for name, stored in (("plain", {}), ("sure", {"calibration": {"thresholds": {"0.01": 0.4}}})):
        bundle.metadata = stored
        file = tmp_path / f"{name}.safetensors"
        export(bundle, file, form="safetensors", model="models/small-0123456789abcdef")
        sidecar = json.loads(Path(f"{file}.json").read_text())
        assert sidecar.get("calibration") == stored.get("calibration")


GIVEN: dict[InputFormat, Callable[[np.ndarray], np.ndarray]] = {
    "hwc": lambda images: images,
    "chw": lambda images: np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
    "imagenet": lambda images: normalised(images, IMAGENET_MEAN, IMAGENET_STD),
}


@pytest.mark.parametrize("takes", list(GIVEN))
@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_a_graph_prepares_images_as_embed_does(
    form: Form, takes: InputFormat, tmp_path: Path
) -> None:
    bundle = bundle_of()
    file = tmp_path / f"model{SUFFIX[form]}"
    export(bundle, file, form=form, model="models/small-0123456789abcdef", takes=takes)
    images = people(3)
    found = run(file, form, GIVEN[takes](images), bundle.model)
    np.testing.assert_allclose(found, bundle.embed(list(images)), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("form", ["onnx", "torchscript", "safetensors"])
def test_half_precision_halves_the_file_and_hardly_moves_the_features(
    form: Form, tmp_path: Path
) -> None:
    bundle = bundle_of(vision_layers=4)
    sizes = {}
    for half in (False, True):
        file = tmp_path / f"{half}{SUFFIX[form]}"
        done = export(bundle, file, form=form, model="models/small-0123456789abcdef", half=half)
        sizes[half] = file.stat().st_size
    assert sizes[True] < 0.65 * sizes[False]
    assert done.least_cosine > 0.999
    images = people(3)
    expected = torch.from_numpy(bundle.embed(list(images)))
    build = small_model(mean=MEAN, std=STD, vision_layers=4, seed=9).eval()
    found = torch.from_numpy(run(file, form, normalised(images), build))
    assert (normalize(found) * expected).sum(1).min() > 0.999
    assert (found - expected).abs().max() > 0


def test_a_graph_has_no_paths_of_the_machine_that_made_it(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export(bundle_of(parts=()), file, form="onnx", model="models/small-0123456789abcdef")
    content = file.read_bytes()
    assert str(Path(exporting.__file__).parent).encode() not in content
    graph = onnx.load(file)
    onnx.checker.check_model(graph, full_check=True)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(metadata["muva"])["feature_dim"] == 32


def kinds(node: Any) -> set[str]:
    """The kinds of a graph node's attributes: `t` for a tensor."""
    return {node.kindOf(name) for name in node.attributeNames()}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("takes", ["normalised", "hwc"])
@pytest.mark.parametrize("gating", ["offline", "online"])
def test_a_torchscript_graph_names_no_device_and_runs_where_it_is_loaded(
    gating: str, takes: InputFormat, half: bool, tmp_path: Path
) -> None:
    bundle = bundle_of(gating=gating)
    file = tmp_path / "model.torchscript"
    export(bundle, file, form="torchscript", model="models/a", takes=takes, half=half)
    module: Any = torch.jit.load(f"{file}")
    graph = module.inlined_graph  # its nodes are valid as long as it is
    constants = graph.findAllNodes("prim::Constant")
    assert not [node for node in constants if f"{node.output().type()}" == "Device"]
    assert 'value="cpu"' not in f"{graph}"
    # A tensor without dimensions takes part in operations on any device, any other does not.
    tensors = [node.t("value") for node in constants if "t" in kinds(node)]
    assert all(tensor.dim() == 0 for tensor in tensors)


@pytest.mark.parametrize("form", ["onnx", "torchscript", "safetensors"])
def test_a_disk_that_takes_no_more_is_reported_and_nothing_is_left(
    form: Form, tmp_path: Path
) -> None:
    bundle = bundle_of()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(MuvaError, match="the export cannot be written"):
            export(bundle, tmp_path / f"model{SUFFIX[form]}", form=form, model="models/a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.torchscript"
    file.write_text("of before")
    scaled = exporting._scale_and_shift
    monkeypatch.setattr(
        exporting, "_scale_and_shift", lambda *a: tuple(1.01 * v for v in scaled(*a))
    )
    with pytest.raises(
        MuvaError,
        match=r"features of rendered people differ from PyTorch's: .* Nothing was written",
    ):
        export(
            bundle_of(),
            file,
            form="torchscript",
            model="models/small-0123456789abcdef",
            takes="hwc",
            overwrite=True,
        )
    assert file.read_text() == "of before"
    assert list(tmp_path.iterdir()) == [file]


def test_no_image_used_for_checking_has_an_undecided_patch() -> None:
    assert len(check_pixels(bundle_of())) == 8
    for gating, expectation in (
        ("online", nullcontext()),
        ("offline", pytest.raises(MuvaError, match="a patch whose mask is undecided")),
    ):
        bundle = bundle_of(gating=gating)
        first = bundle.model.get_submodule("image_encoder.mask_predictor.blocks.0.mlp.2")
        for parameter in first.parameters():
            torch.nn.init.zeros_(parameter)  # every logit of the first block is 0
        with expectation:
            check_pixels(bundle)


@pytest.mark.parametrize(
    ("name", "form", "takes", "explanation"),
    [
        ("model.pt", "onnx", "normalised", "ending in .onnx for onnx"),
        ("model.safetensors", "safetensors", "hwc", "no graph that could preprocess images"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    name: str, form: Form, takes: InputFormat, explanation: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=explanation):
        export(bundle_of(), tmp_path / name, form=form, model="models/a", takes=takes)


def test_what_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MuvaError, match=r"needs onnxscript, .* pip install onnxscript"):
        export(bundle_of(), tmp_path / "model.onnx", form="onnx", model="models/a")


def test_the_second_file_of_a_large_graph_arrives_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD"
    monkeypatch.setattr(program, 1)
    bundle = bundle_of(parts=())
    file = tmp_path / "large.onnx"
    done = export(bundle, file, form="onnx", model="models/small-0123456789abcdef")
    weights = tmp_path / "large.onnx.data"
    assert done.weights_files == (weights,)
    assert weights.stat().st_size > file.stat().st_size
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["large.onnx", "large.onnx.data", "large.onnx.json"]
    sidecar = json.loads(Path(f"{file}.json").read_text())
    assert sidecar["weights_files"] == {weights.name: sha256(weights.read_bytes()).hexdigest()}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for one in (file, weights):
        one.replace(moved / one.name)
    images = people(2)
    features = run(moved / file.name, "onnx", normalised(images), bundle.model)
    np.testing.assert_allclose(features, bundle.embed(list(images)), atol=1e-4)


def test_the_files_of_an_earlier_export_are_replaced_only_on_request(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    for ending in ("", ".data", ".json", ".metadata.json"):
        earlier = Path(f"{file}{ending}")
        earlier.write_text("of before")
        with pytest.raises(MuvaError, match=r"exists already\. .* --overwrite"):
            export(bundle_of(), file, form="safetensors", model="models/a")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["of before"]
        export(bundle_of(), file, form="safetensors", model="models/a", overwrite=True)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["model.safetensors", "model.safetensors.json"]
        assert b"of before" not in file.read_bytes()
        for path in tmp_path.iterdir():
            path.unlink()


def test_an_export_that_does_not_open_in_its_final_place_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.safetensors"
    for ending in ("", ".json"):
        Path(f"{file}{ending}").write_text(f"before{ending}")
    opened = exporting.open_exported

    def open_elsewhere(place: Path, **options: Any) -> Any:
        if place == file:
            raise RuntimeError("the weights are missing")
        return opened(place, **options)

    monkeypatch.setattr(exporting, "open_exported", open_elsewhere)
    with pytest.raises(MuvaError, match="cannot be opened in its final place: the weights are mis"):
        export(bundle_of(), file, form="safetensors", model="models/a", overwrite=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model.safetensors": "before",
        "model.safetensors.json": "before.json",
    }
