"""`muva ui` as people run it: a process of its own, MLflow's real server, a browser's requests."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.cli import server as server_command

from muva.errors import MuvaError
from tests.workflows.commands import PATIENCE_S, heeding_ctrl_c
from tracking.runs import RunRef, Tracker
from tracking.ui import run_link
from workflows.runtime.local import usable_port
from workflows.verbs.ui import OTHER_SERVERS, ui_verb

TRAINING_VIEW = "workflowType=machine_learning"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home: Path) -> RunRef:
    with Tracker(f"sqlite:///{home / 'mlflow.db'}", "muva/demo").open(name="demo", key="d") as made:
        made.log_metrics({"syn-station/mAP": 0.5})
        made.log_image("pictures/sheet.png", np.zeros((4, 4, 3), np.uint8))
    return made.ref


@pytest.fixture(scope="module")
def server(home: Path, run: RunRef) -> Iterator[tuple[str, list[str]]]:
    """The address that the verb printed, and all that it printed.

    Its environment has settings that are meant for another server.
    """
    meant_for_another = {"MLFLOW_STATIC_PREFIX": "/mlflow", "MLFLOW_ARTIFACTS_ONLY": "true"}
    command = [sys.executable, "-m", "workflows.cli", "ui", "--home", str(home), "--port", "0"]
    process = subprocess.Popen(
        command,
        env={**os.environ, **meant_for_another},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heeding_ctrl_c,
    )
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line.strip())
        if "Ctrl-C" in line:
            break
    address = re.search(r"http://127\.0\.0\.1:\d+", "".join(said))
    assert address is not None, said
    yield address.group(), said
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{address.group()}/health", timeout=2)


def test_it_links_each_experiment_in_the_training_view(
    server: tuple[str, list[str]], run: RunRef
) -> None:
    address, said = server
    link = f"{address}/#/experiments/{run.experiment_id}/runs?{TRAINING_VIEW}"
    assert f"muva/demo: {link}" in said
    assert run_link(address, run).startswith(
        f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    )
    with urllib.request.urlopen(address) as page:
        assert b"<div" in page.read()


def test_the_server_shows_the_runs_and_their_pictures(
    server: tuple[str, list[str]], run: RunRef
) -> None:
    address, _ = server
    client = MlflowClient(tracking_uri=address)
    assert client.get_run(run.run_id).data.metrics == {"syn-station/mAP": 0.5}
    picture = f"{address}/get-artifact?path=pictures/sheet.png&run_uuid={run.run_id}"
    with urllib.request.urlopen(picture) as answer:
        assert answer.read(8) == b"\x89PNG\r\n\x1a\n"


def test_runs_are_tracked_through_the_server_as_well(server: tuple[str, list[str]]) -> None:
    address, _ = server
    for value in (0.5, 0.5):
        with Tracker(address, "muva/remote").open(name="step", key="step") as run:
            run.log_metrics({"loss": value}, step=1)
            run.log_text("notes.txt", "kept by the server")
    client = MlflowClient(tracking_uri=address)
    assert len(client.get_metric_history(run.ref.run_id, "loss")) == 1
    assert client.get_run(run.ref.run_id).data.tags["muva.attempt"] == "2"
    file = client.download_artifacts(run.ref.run_id, "notes.txt")
    assert Path(file).read_text() == "kept by the server"


def test_a_port_in_use_is_named_with_a_free_one(home: Path, run: RunRef) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = CliRunner().invoke(ui_verb, ["--home", str(home), "--port", str(port)])
    assert isinstance(said.exception, MuvaError)
    message = re.fullmatch(
        rf"Port {port} of 127\.0\.0\.1 is in use \(.*\)\. Choose another one, for example "
        r"--port (\d+), or end the program that listens there\.",
        str(said.exception),
    )
    assert message is not None
    assert usable_port(int(message.group(1))) == int(message.group(1))


def test_no_variable_of_another_server_reaches_this_one() -> None:
    assert {option.envvar for option in server_command.params if option.envvar} <= {*OTHER_SERVERS}


def test_without_runs_it_says_how_to_make_some(tmp_path: Path) -> None:
    said = CliRunner().invoke(ui_verb, ["--home", str(tmp_path)])
    assert isinstance(said.exception, MuvaError)
    assert "make demo" in str(said.exception)
    assert not list(tmp_path.iterdir())


def test_runs_on_a_server_are_linked_there() -> None:
    said = CliRunner().invoke(ui_verb, ["--tracking-uri", "https://me:pass@mlflow.example.org"])
    assert said.exit_code == 0
    link = f"https://mlflow.example.org/#/experiments?{TRAINING_VIEW}"
    assert said.stdout.strip() == f"A server already serves the runs: {link}"
