"""`muva export`, and that BoxMOT's own preparation of people meets the files that it is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import muva
from muva.synthetic import render
from tests.model.small import IMAGE_SIZE, stored_model
from workflows.cli import main

NAME = "small-0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with one model, whose mean and std differ by channel and are not ImageNet's."""
    stored_model(tmp_path, NAME, mean=(0.5, 0.4, 0.6), std=(0.5, 0.3, 0.2))
    return tmp_path


def export(home: Path, *words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", "small", *words, "--home", f"{home}"])
    assert stop.value.code == code


def boxmot_batch(
    frame_bgr: np.ndarray, boxes: Sequence[Sequence[float]], *, height: int, width: int
) -> np.ndarray:
    """What BoxMOT 25.0.0 gives a model of a frame and boxes (x0, y0, x1, y1), as its source tells.

    `boxmot/reid/core/crops.py` cuts boxes to whole pixels within the frame,
    `preprocessing.py` resizes with OpenCV's bilinear interpolation, `base_backend.py` has the
    statistics.
    """
    batch = []
    for box in np.round(np.asarray(boxes, np.float32)).astype(int):
        x0, y0 = np.maximum(box[:2], 0)
        x1, y1 = np.minimum(box[2:], frame_bgr.shape[1::-1])
        resized = cv2.resize(frame_bgr[y0:y1, x0:x1], (width, height))
        rgb = resized[:, :, ::-1].astype(np.float32) / 255
        batch.append((rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    return np.stack(batch).transpose(0, 3, 1, 2).astype(np.float32)


def onnx_features(file: Path, batch: np.ndarray) -> np.ndarray:
    """As BoxMOT runs ONNX: first input, first output, the graph's own type."""
    session = onnxruntime.InferenceSession(f"{file}", providers=["CPUExecutionProvider"])
    given, output = session.get_inputs()[0], session.get_outputs()[0]
    assert given.shape[1:] == [3, *IMAGE_SIZE]
    assert given.type == "tensor(float)"
    return np.asarray(session.run([output.name], {given.name: batch})[0])


def torchscript_features(file: Path, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.jit.load(f"{file}").float()(torch.from_numpy(batch)).numpy()


@pytest.mark.parametrize(
    ("form", "suffix", "features_of"),
    [("onnx", ".onnx", onnx_features), ("torchscript", ".torchscript", torchscript_features)],
)
def test_boxmot_gets_the_models_own_features(
    form: str,
    suffix: str,
    features_of: Callable[[Path, np.ndarray], np.ndarray],
    home: Path,
) -> None:
    file = home / f"boxmot{suffix}"
    export(home, "--format", form, "--out", f"{file}", "--for", "boxmot")
    height, width = IMAGE_SIZE
    frame = np.zeros((160, 200, 3), np.uint8)
    sizes = [(height, width), (height, width), (96, 48)]
    boxes = []
    for number, (tall, wide) in enumerate(sizes):
        picture = render(
            "syn-station", pid=30 + number, camid=2, index=0, height=tall, width=wide
        ).image
        left, top = 60 * number, 10
        frame[top : top + tall, left : left + wide] = picture[:, :, ::-1]
        boxes.append((left + 0.3, top - 0.2, left + wide - 0.4, top + tall + 0.4))
    found = features_of(file, boxmot_batch(frame, boxes, height=height, width=width))

    people = []
    for x0, y0, x1, y1 in np.round(boxes).astype(int):
        person = np.ascontiguousarray(frame[y0:y1, x0:x1, ::-1])
        people.append(cv2.resize(person, (width, height)))  # BoxMOT's way, which is not embed's
    expected = muva.load(home / "store" / "models" / NAME).embed(people)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    beside = json.loads(Path(f"{file}.metadata.json").read_text())
    assert beside["model_kwargs"] == {"img_size": list(IMAGE_SIZE)}


def test_the_result_says_how_close_the_file_comes(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "small.torchscript"
    words = ("--format", "torchscript", "--with-preprocessing", "--layout", "chw")
    export(home, *words, "--out", f"{file}", "--json")
    output = json.loads(capsys.readouterr().out)
    assert (output["file"], output["model"].endswith(NAME)) == (f"{file}", True)
    assert output["largest_difference"] < 1e-5
    sidecar = json.loads(Path(output["sidecar"]).read_text())
    assert sidecar["input"]["shape"] == ["batch", 3, *IMAGE_SIZE]
    assert (sidecar["input"]["dtype"], sidecar["preprocessing"]["in_graph"]) == ("uint8", True)
    assert sidecar["model"] == f"models/{NAME}"
    pixels = np.random.default_rng(0).integers(0, 256, (2, *IMAGE_SIZE, 3), dtype=np.uint8)
    found = torch.jit.load(f"{file}")(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    expected = muva.load(output["model"]).embed(list(pixels))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_no_file_is_replaced_without_the_option(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "small.safetensors"
    words = ("--format", "safetensors", "--out", f"{file}")
    export(home, *words)
    before = file.read_bytes()
    file.write_text("of before")
    export(home, *words, code=1)
    assert "small.safetensors.json: exists already" in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == "of before"
    export(home, *words, "--overwrite")
    assert file.read_bytes() == before


def test_the_example_in_the_documentation_gives_the_features_of_embed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    export(home, "--format", "onnx", "--out", "muva.onnx")
    picture = render("syn-station", pid=3, camid=1, index=0, height=96, width=48).image
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    Image.fromarray(picture).save("a.jpg", exif=exif)
    page = Path(__file__).parents[3] / "docs" / "using-the-model.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    [example] = [block for block in blocks if "onnxruntime.InferenceSession" in block]
    names: dict[str, Any] = {}
    exec(example, names)
    expected = muva.load(home / "store" / "models" / NAME).embed(["a.jpg"])
    np.testing.assert_allclose(names["features"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "explanation"),
    [
        (("--format", "onnx", "--out", "a.onnx", "--layout", "hwc"), "applies only to --with"),
        (
            ("--format", "onnx", "--out", "a.onnx", "--for", "boxmot", "--with-preprocessing"),
            "contradict each other",
        ),
        (("--format", "torchscript", "--out", "a.pt", "--for", "boxmot"), "ends in .torchscript"),
        (("--format", "safetensors", "--out", "a.safetensors", "--for", "boxmot"), "expected onnx"),
        (
            ("--format", "torchscript", "--out", "a.torchscript", "--for", "boxmot", "--half"),
            "expected --format onnx for half precision",
        ),
    ],
)
def test_what_boxmot_could_not_use_is_refused(
    words: tuple[str, ...],
    explanation: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    export(home, *words, code=2)
    assert explanation in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in home.iterdir()] == ["store"]
