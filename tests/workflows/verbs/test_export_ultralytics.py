"""`muva export --for ultralytics`: what Ultralytics' trackers make of the file.

`make test-ultralytics` runs Ultralytics itself, in an environment of its own. The other tests
repeat how it prepares people, from its source.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import muva
from muva.synthetic import render
from tests.model.small import IMAGE_SIZE, stored_model
from workflows.cli import main

NAME = "small-0123456789abcdef"
ROOT = Path(__file__).parents[3]
PYTHON = Path(os.environ.get("MUVA_ULTRALYTICS_PYTHON", ROOT / ".venv-ultralytics/bin/python"))
TOLERANCE = 1e-4
"""Of any feature value, as for every export."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with one model, whose mean and std differ by channel."""
    stored_model(tmp_path, NAME, mean=(0.5, 0.4, 0.6), std=(0.5, 0.3, 0.2))
    return tmp_path


def export(home: Path, *words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", "small", *words, "--for", "ultralytics", "--home", f"{home}"])
    assert stop.value.code == code


def frames_and_boxes(count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """BGR frames in which three people move, and their boxes (x0, y0, x1, y1)."""
    frames = np.full((count, 200, 320, 3), 90, np.uint8)
    boxes = np.zeros((count, 3, 4))
    for number in range(count):
        for person, (tall, wide) in enumerate([(120, 60), (96, 48), (150, 64)]):
            picture = render(
                "syn-station", pid=30 + person, camid=2, index=number, height=tall, width=wide
            ).image
            left, top = 100 * person + 20 + 4 * number, 20
            frames[number, top : top + tall, left : left + wide] = picture[:, :, ::-1]
            boxes[number, person] = (left, top, left + wide, top + tall)
    return frames, boxes


def ultralytics_batch(frame_bgr: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """What Ultralytics 8.4.190 gives a model of a frame and boxes (x0, y0, x1, y1).

    `utils/plotting.py: save_one_box` widens boxes by 2 % and 10 pixels and cuts them to the frame;
    `trackers/utils/reid.py: _crops_to_tensor` resizes with PyTorch, without antialiasing.
    """
    batch = []
    for x0, y0, x1, y1 in boxes:
        x, y, width, height = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
        width, height = 1.02 * width + 10, 1.02 * height + 10
        corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        limits = frame_bgr.shape[1::-1] * 2
        left, top, right, bottom = np.clip(corners, 0, limits).astype(int)
        crop = np.ascontiguousarray(frame_bgr[top:bottom, left:right, ::-1])
        pixels = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(pixels, size=IMAGE_SIZE, mode="bilinear")
        batch.append(resized[0].numpy())
    return np.stack(batch)


def test_ultralytics_gets_the_models_own_features(home: Path) -> None:
    file = home / "ultralytics.onnx"
    export(home, "--format", "onnx", "--out", f"{file}")
    [frame], [boxes] = frames_and_boxes(1)
    batch = ultralytics_batch(frame, boxes)
    session = onnxruntime.InferenceSession(f"{file}", providers=["CPUExecutionProvider"])
    [given] = session.get_inputs()
    assert given.shape[1:] == [3, *IMAGE_SIZE]  # static: it is where Ultralytics reads the size
    assert given.type == "tensor(float)"
    [found] = session.run(None, {given.name: batch})
    bundle = muva.load(home / "store" / "models" / NAME)
    expected = bundle.embed_pixels(torch.from_numpy(batch))
    np.testing.assert_allclose(np.asarray(found), expected, atol=TOLERANCE)


def test_the_file_says_that_batches_may_have_any_size(home: Path) -> None:
    file = home / "ultralytics.onnx"
    export(home, "--format", "onnx", "--out", f"{file}")
    properties = {one.key: one.value for one in onnx.load(file).metadata_props}
    assert properties["args"] == "{'dynamic': True}"  # a Python literal, as AutoBackend parses it
    assert json.loads(properties["muva"])["preprocessing"]["mean"] == [0, 0, 0]


@pytest.mark.parametrize(
    ("words", "explanation"),
    [
        (("--format", "torchscript", "--out", "a.torchscript"), "squares of 224 x 224"),
        (("--format", "torchscript", "--out", "a.pt"), "expected onnx and a name that ends in"),
        (("--format", "onnx", "--out", "a.onnx", "--with-preprocessing"), "contradict each other"),
    ],
)
def test_what_ultralytics_could_not_use_is_refused(
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


@pytest.mark.ultralytics
@pytest.mark.parametrize("tracker", ["botsort", "deepocsort"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "half"])
def test_ultralytics_trackers_use_the_file(tracker: str, half: bool, home: Path) -> None:
    assert PYTHON.is_file(), f"{PYTHON} is missing: run `make test-ultralytics`"
    file = home / "ultralytics.onnx"
    export(home, "--format", "onnx", "--out", f"{file}", *(["--half"] if half else []))
    frames, boxes = frames_and_boxes()
    np.savez(home / "frames.npz", frames_bgr=frames, boxes_xyxy=boxes)
    shipped = PYTHON.parent.parent.glob(f"lib/*/site-packages/ultralytics/cfg/trackers/{tracker}*")
    settings = next(shipped).read_text()
    settings = settings.replace("with_reid: False", "with_reid: True")
    settings = settings.replace("model: auto", f"model: {file}")
    assert f"model: {file}" in settings
    assert "with_reid: True" in settings
    (home / "tracker.yaml").write_text(settings)
    script = Path(__file__).with_name("ultralytics_tracker.py")
    places = ("tracker.yaml", "frames.npz", "results.npz")
    environment = {"YOLO_CONFIG_DIR": f"{home}", "YOLO_OFFLINE": "true", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [f"{PYTHON}", f"{script}", *(f"{home / name}" for name in places)],
        cwd=home,
        env={"PATH": os.environ["PATH"], "HOME": f"{home}", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = np.load(home / "results.npz")

    assert tuple(found["size"]) == tuple(found["size in track"]) == IMAGE_SIZE
    assert set(found["batches"]) == {3}  # all people of a frame at once
    bundle = muva.load(home / "store" / "models" / NAME)
    for number, (frame, people) in enumerate(zip(frames, boxes, strict=True)):
        crops = found[f"crops {number}"]
        np.testing.assert_allclose(crops, ultralytics_batch(frame, people), atol=1e-6)
        expected = bundle.embed_pixels(torch.from_numpy(crops))
        features = found[f"features {number}"]
        if half:
            assert (features * expected).sum(axis=1).min() > 0.99
        else:
            np.testing.assert_allclose(features, expected, atol=TOLERANCE)
        own = bundle.embed([found[f"crop {number} {i}"][:, :, ::-1].copy() for i in range(3)])
        assert (features * own).sum(axis=1).min() > 0.99  # embed resizes with antialiasing
    # Every person keeps the number of their track, and the track the feature of the last frame.
    assert {tuple(rows[:, 0]) for rows in found["tracks"]} == {(1.0, 2.0, 3.0)}
    last = found[f"features {len(frames) - 1}"]
    similarity = found["track features"] @ last.T
    np.testing.assert_allclose(similarity.max(axis=1), 1, atol=1e-3)
