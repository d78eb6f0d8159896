"""A model in MLflow: logged, loaded by MLflow alone, and served by `mlflow models serve`."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model
from PIL import Image

import muva
from muva.synthetic import render
from tests.model.small import stored_model
from tracking.lineage import UsedModel
from tracking.runs import Tracker
from workflows.cli import main
from workflows.runtime.local import HOST, usable_port

NAME = "small-0123456789abcdef"
STARTS_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one model."""
    folder = tmp_path_factory.mktemp("home")
    stored_model(folder, NAME, seed=3)
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of people, of two sizes."""
    folder = tmp_path_factory.mktemp("people")
    files = []
    for pid in (1, 2, 3):
        picture = render("syn-harbour", pid=pid, camid=1, index=0, height=96 + pid, width=40)
        files.append(folder / f"{pid}.png")
        Image.fromarray(picture.image).save(files[-1])
    return files


@pytest.fixture
def logged(home: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The logged model's address."""
    return log(home, capsys)["mlflow_model"]


def log(home: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["models", "log", "small", "--home", f"{home}", "--json"])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)


def tracking_uri(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


@pytest.fixture
def loaded(logged: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> PyFuncModel:
    """The model, as whoever knows nothing but its address and the database loads it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(home))
    return load_model(logged)


def test_every_form_of_an_image_gives_the_bundles_features(
    loaded: PyFuncModel, home: Path, people: list[Path]
) -> None:
    expected = muva.load(home / "store" / "models" / NAME).embed(people)
    encoded = [file.read_bytes() for file in people]
    texts = [base64.b64encode(content).decode() for content in encoded]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in people]
    forms: dict[str, list[Any]] = {
        "paths": [f"{file}" for file in people],
        "bytes": encoded,
        "base64": texts,
        "data address": [f"data:image/png;base64,{text}" for text in texts],
        "arrays": pixels,
        "lists": [image.tolist() for image in pixels],
        "PIL images": [Image.open(file) for file in people],
        "mixed": [f"{people[0]}", encoded[1], pixels[2].tolist()],
    }
    for form, images in forms.items():
        found = loaded.predict(pd.DataFrame({"image": images}))
        assert found.dtype == np.float32, form
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=form)


@pytest.mark.parametrize(
    ("image", "explanation"),
    [
        ("nowhere.jpg", "row 1: 'nowhere.jpg' is neither an existing file nor a base64-"),
        ("/tmp", "row 1: '/tmp' is a folder"),
        (b"no image", "an image of 8 bytes"),
        (base64.b64encode(b"no image").decode(), "an image of 8 bytes"),
        (None, "row 1: expected a path, encoded bytes, base64"),
        ([[[0, 0, 256]]], "integers from 0 to 255"),
        ([[0, 1], [2]], "integers from 0 to 255"),
        ([[[0.5, 0.5, 0.5]]], "integers from 0 to 255"),
    ],
)
def test_a_caller_is_told_what_is_wrong_with_an_image(
    image: Any, explanation: str, loaded: PyFuncModel, people: list[Path]
) -> None:
    with pytest.raises(MlflowException, match=explanation) as refused:
        loaded.predict(pd.DataFrame({"image": [f"{people[0]}", image]}))
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_logged_model_holds_no_pickle_and_is_logged_once(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = log(home, capsys), log(home, capsys)
    assert again == first
    client = MlflowClient(tracking_uri(home))
    run = client.get_run(first["run_id"])
    [model] = client.search_logged_models([run.info.experiment_id])
    assert f"models:/{model.model_id}" == first["mlflow_model"]
    assert run.inputs is not None
    assert [one.model_id for one in run.inputs.model_inputs] == [model.model_id]
    assert model.tags["muva.artifact"] == f"models/{NAME}"
    folder = Path(model.artifact_location.removeprefix("file://"))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert names >= {"MLmodel", "served_model.py", "bundle.json", "model.safetensors"}
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pt"))]
    stored = (folder / "artifacts" / "bundle" / "model.safetensors").read_bytes()
    assert (
        stored == (home / "store" / "models" / NAME / "bundle" / "model.safetensors").read_bytes()
    )


def test_a_model_that_was_judged_before_is_logged_with_its_files(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tracking_uri(home), "muva").open(name="evaluate", key="evaluate") as run:
        judged = run.log_model(UsedModel(name="small", address=f"models/{NAME}"), made=False)
    recorded = log(home, capsys)
    assert recorded["mlflow_model"] == f"models:/{judged}"
    model = MlflowClient(tracking_uri(home)).get_logged_model(
        recorded["mlflow_model"].split("/")[-1]
    )
    assert (Path(model.artifact_location.removeprefix("file://")) / "MLmodel").is_file()


def test_the_model_is_served_over_http(logged: str, home: Path, people: list[Path]) -> None:
    expected = muva.load(home / "store" / "models" / NAME).embed(people)
    texts = [base64.b64encode(file.read_bytes()).decode() for file in people]
    with served(logged, home) as address:
        rows = [{"image": text} for text in texts]
        status, answer = ask(address, {"dataframe_records": rows})
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)
        split = {"columns": ["image"], "data": [[f"{people[1]}"]]}
        status, answer = ask(address, {"dataframe_split": split})
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected[1:2], atol=1e-6)
        status, answer = ask(address, {"dataframe_records": [{"image": "nowhere.jpg"}]})
        assert (status, "neither an existing file" in answer["message"]) == (400, True)


@contextmanager
def served(model: str, home: Path) -> Iterator[str]:
    """MLflow's own server, as the command line starts it."""
    port = usable_port(0)
    programs = Path(sys.executable).parent
    root = f"{Path(muva.__file__).parents[1]}"
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri(home),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", HOST, "--port", str(port)]
    with (home / "serve.log").open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://{HOST}:{port}"
    try:
        ends_at = time.monotonic() + STARTS_WITHIN_S
        while not answers(address):
            assert process.poll() is None, (home / "serve.log").read_text()
            assert time.monotonic() < ends_at, (home / "serve.log").read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def ask(address: str, table: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps(table).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)
