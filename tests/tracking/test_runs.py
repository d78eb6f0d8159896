"""Runs on a real SQLite database: what MLflow holds afterwards, read with its own client."""

import functools
import math
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from PIL import Image

from muva.config import ModelConfig
from muva.errors import MuvaError
from tracking.connection import failures_explained
from tracking.runs import RunRef, Tracker, log_metrics, runs_with_tag
from tracking.source import opened_by_dead_process, source_tags


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def client(tracking_uri: str) -> MlflowClient:
    Tracker(tracking_uri, "first")
    return MlflowClient(tracking_uri=tracking_uri)


@pytest.fixture
def tracker(tracking_uri: str, client: MlflowClient, request: pytest.FixtureRequest) -> Tracker:
    return Tracker(tracking_uri, f"muva/{request.node.name}")


def runs_of(tracker: Tracker, client: MlflowClient) -> list[MlflowRun]:
    return list(client.search_runs([tracker.experiment_id]))


def test_the_same_key_opens_the_same_run(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.open(name="train", key="models/muva-0123") as first:
        pass
    again = tracker.open(name="train", key="models/muva-0123")
    assert again.ref == first.ref
    assert client.get_run(again.ref.run_id).info.status == "RUNNING"
    again.finish()
    (run,) = runs_of(tracker, client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["muva.attempt"] == "2"


def test_the_same_key_under_another_parent_is_another_run(
    tracker: Tracker, client: MlflowClient
) -> None:
    parents = [tracker.open(name=name, key=name) for name in ("one", "two")]
    children = [tracker.open(name="step", key="step", parent=run.ref) for run in parents]
    alone = tracker.open(name="step", key="step")
    assert len({run.ref.run_id for run in (*children, alone)}) == 3
    assert tracker.open(name="step", key="step").ref == alone.ref
    assert tracker.open(name="step", key="step", parent=parents[1].ref).ref == children[1].ref
    nested = client.get_run(children[0].ref.run_id).data.tags["mlflow.parentRunId"]
    assert nested == parents[0].ref.run_id


def test_a_child_repeats_its_parents_tags_and_not_its_bookkeeping(
    tracker: Tracker, client: MlflowClient
) -> None:
    parent = tracker.open(
        name="demo", key="demo", tags={"sources": "a,b", "targets": "c"}, description="the whole"
    )
    parent.set_tags({"muva.artifact": "x"})
    child = tracker.open(name="train", key="train", parent=parent.ref, tags={"targets": "d"})
    tags = client.get_run(child.ref.run_id).data.tags
    assert (tags["sources"], tags["targets"]) == ("a,b", "d")
    assert tags["muva.key"] == "train"
    assert "muva.artifact" not in tags
    assert "mlflow.note.content" not in tags


def test_a_repeated_epoch_is_one_point_of_the_curve(tracker: Tracker, client: MlflowClient) -> None:
    run = tracker.open(name="train", key="train")
    for epoch in (1, 2, 3):
        run.log_metrics({"stage2/loss": 1 / epoch}, step=epoch)
    ref: RunRef = pickle.loads(pickle.dumps(run.ref))
    for epoch in (2, 3, 4):  # resumed from the checkpoint of epoch 1, with other rounding
        log_metrics(ref, {"stage2/loss": 1 / epoch + 1e-7}, step=epoch)
    history = client.get_metric_history(ref.run_id, "stage2/loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    assert [point.value for point in history] == [1, 1 / 2, 1 / 3, 1 / 4 + 1e-7]


def test_a_final_number_is_written_once_and_its_newest_value_is_shown(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.open(name="evaluate", key="evaluate")
    monkeypatch.setattr(time, "time", lambda: 1.8e9)  # all in one millisecond
    for value in (0.5, 0.5, 0.4, 0.4):
        run.log_metrics({"syn-station/mAP": value, "empty/mAP": math.nan})
    data = client.get_run(run.ref.run_id).data
    assert data.metrics["syn-station/mAP"] == 0.4
    assert len(client.get_metric_history(run.ref.run_id, "syn-station/mAP")) == 2
    assert len(client.get_metric_history(run.ref.run_id, "empty/mAP")) == 1


def test_more_than_one_batch_of_everything_arrives(tracker: Tracker, client: MlflowClient) -> None:
    run = tracker.open(
        name="many", key="many", params={f"p{i}": i for i in range(230)}, tags={"long": "x" * 9000}
    )
    run.log_metrics({f"m{i}": float(i) for i in range(1100)})
    data = client.get_run(run.ref.run_id).data
    assert len(data.params) == 230
    assert len(data.metrics) == 1100
    assert len(data.tags["long"]) == 8000


def test_sections_become_flat_params_and_a_changed_one_a_tag(
    tracker: Tracker, client: MlflowClient
) -> None:
    section = ModelConfig(gating="online")
    run = tracker.open(name="train", key="train", params={"model": section, "workers": 1})
    tracker.open(name="train", key="train", params={"model": section, "workers": 2})
    data = client.get_run(run.ref.run_id).data
    assert data.params["model.gating"] == "online"
    assert data.params["model.parts"] == '["head", "upper_body", "legs"]'
    assert data.params["workers"] == "1"
    assert data.tags["muva.changed.workers"] == "2"
    assert [key for key in data.tags if key.startswith("muva.changed")] == ["muva.changed.workers"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MuvaError("The store is full."), "FAILED", "The store is full."),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero"),
        (
            KeyboardInterrupt(),
            "KILLED",
            "Interrupted with Ctrl-C; run the same command again to resume.",
        ),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (SystemExit(0), "FINISHED", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_status_of_a_run_follows_from_the_end_of_its_block(
    tracker: Tracker,
    client: MlflowClient,
    error: BaseException,
    status: str,
    reason: str | None,
) -> None:
    with pytest.raises(type(error)), tracker.open(name="step", key="step") as run:
        raise error
    closed = client.get_run(run.ref.run_id)
    assert closed.info.status == status
    assert closed.info.end_time is not None
    assert closed.data.tags.get("muva.reason") == reason
    with tracker.open(name="step", key="step"):
        pass
    healed = client.get_run(run.ref.run_id)
    assert healed.info.status == "FINISHED"
    assert "muva.reason" not in healed.data.tags


def test_a_bug_leaves_its_traceback(tracker: Tracker, client: MlflowClient) -> None:
    with pytest.raises(ZeroDivisionError), tracker.open(name="step", key="step") as run:
        _ = 1 // 0
    file = client.download_artifacts(run.ref.run_id, "failure.txt")
    assert "_ = 1 // 0" in Path(file).read_text()


def test_nothing_is_known_of_a_process_in_another_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("os.getpid", lambda: 2**22 + 1)  # above any process id of Linux
        here = source_tags()
        elsewhere.setattr("tracking.source._pid_namespace", lambda: "pid:[1]")
        in_container = source_tags()
    assert opened_by_dead_process(here)
    assert not opened_by_dead_process(in_container)
    without = {tag: value for tag, value in here.items() if "namespace" not in tag}
    assert opened_by_dead_process(without), "as earlier versions recorded it"


def test_a_run_whose_process_was_killed_is_marked_failed_by_the_next_one(
    tracker: Tracker, client: MlflowClient
) -> None:
    experiment = client.get_experiment(tracker.experiment_id).name
    script = (
        "import os, signal; from tracking.runs import Tracker;"
        f"Tracker({tracker.tracking_uri!r}, {experiment!r}).open(name='train', key='train');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    mine = tracker.open(name="alive", key="alive")
    on_death = subprocess.run([sys.executable, "-c", script], check=False)
    assert on_death.returncode == -signal.SIGKILL
    assert sorted(run.info.status for run in runs_of(tracker, client)) == ["RUNNING", "RUNNING"]
    Tracker(tracker.tracking_uri, experiment)
    states = {run.info.run_name: run for run in runs_of(tracker, client)}
    assert states["train"].info.status == "FAILED"
    assert "killed" in states["train"].data.tags["muva.reason"]
    assert states["alive"].info.run_id == mine.ref.run_id
    assert states["alive"].info.status == "RUNNING"


def test_artifacts_of_one_path_replace_each_other(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    run = tracker.open(name="step", key="step")
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    (tmp_path / "report.json").write_text("{}")
    for shade in (0, 200):
        run.log_image("pictures/sheet.png", np.full((4, 6, 3), shade, np.uint8))
        run.log_image("pictures/pil.png", Image.new("RGB", (5, 5)))
        run.log_figure("pictures/cmc.png", figure)
        run.log_yaml("config.yaml", {"model": ModelConfig(), "seed": shade})
        run.log_artifact(tmp_path / "report.json", "reports")
    pictures = client.list_artifacts(run.ref.run_id, "pictures")
    assert [Path(file.path).name for file in pictures] == ["cmc.png", "pil.png", "sheet.png"]
    folder = Path(client.download_artifacts(run.ref.run_id, ""))
    with Image.open(folder / "pictures/sheet.png") as sheet:
        assert sheet.size == (6, 4)
        assert sheet.getpixel((0, 0)) == (200, 200, 200)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["seed"] == 200
    assert settings["model"]["parts"] == ["head", "upper_body", "legs"]
    assert (folder / "reports/report.json").read_text() == "{}"


def test_pictures_are_stored_next_to_the_database(tracker: Tracker, client: MlflowClient) -> None:
    database = Path(tracker.tracking_uri.removeprefix("sqlite:///"))
    location = client.get_experiment(tracker.experiment_id).artifact_location
    assert location.startswith((database.parent / "mlartifacts").as_uri())


def test_no_secret_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: MlflowClient
) -> None:
    secret, other = "correct-horse-battery-staple", "not-in-the-environment"
    monkeypatch.setenv("RAY_AUTH_TOKEN", secret)
    monkeypatch.setattr(sys, "argv", ["muva", "train", "--api-key", secret])
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "secrets")
    with (
        pytest.raises(RuntimeError),
        tracker.open(
            name="step",
            key="step",
            tags={"store": f"s3://user:{secret}@host/bucket", "aws_secret_key": other},
            params={"hub": {"token": other, "url": f"https://{secret}@host"}, "note": secret},
            description=f"Run with password={secret}",
        ) as run,
    ):
        run.log_text("log.txt", f"Authorization: Bearer {secret}")
        run.log_yaml("config.yaml", {"hubs": [{"token": other}]})
        raise RuntimeError(f"cannot log in with {secret}")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"mlflow.db", "log.txt", "config.yaml", "failure.txt"} <= {file.name for file in files}
    for word in (secret, other):
        assert not [file for file in files if word.encode() in file.read_bytes()]


def test_a_run_says_where_it_comes_from(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/muva", "run", "demo", "--set", "seed=1"])
    monkeypatch.setenv("MUVA_JOB", "muva-run-7")
    run = tracker.open(name="step", key="step")
    tags = client.get_run(run.ref.run_id).data.tags
    assert tags["mlflow.source.name"] == "muva run demo --set seed=1"
    assert tags["muva.ray_job"] == "muva-run-7"
    root = Path(__file__).parents[2]
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    if (root / ".git").exists():
        assert tags["mlflow.source.git.commit"] == head.stdout.strip()
        assert tags["muva.uncommitted_changes"] in {"true", "false"}


def test_runs_are_found_by_a_tag_in_all_experiments(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert runs_with_tag(uri, "muva.artifact") == []
    assert not (tmp_path / "mlflow.db").exists()
    made = {}
    for number in (1, 2):
        run = Tracker(uri, f"experiment {number}").open(name=f"run {number}", key="key")
        run.set_tags({"muva.artifact": f"models/{number}"})
        made[f"run {number}"] = (f"models/{number}", run.ref)
        Tracker(uri, f"experiment {number}").open(name="other", key="other")
    found = runs_with_tag(uri, "muva.artifact")
    assert {run.name: (run.value, run.ref) for run in found} == made
    assert runs_with_tag(None, "muva.artifact") == []


def test_metrics_from_another_process_create_no_database(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    with pytest.raises(MuvaError, match=r"mlflow\.db does not exist.*use a tracking server"):
        log_metrics(RunRef(f"sqlite:///{file}", "1", "abc"), {"loss": 1.0}, step=1)
    assert not file.exists()


def test_a_server_that_does_not_respond_is_named_immediately() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    started_at = time.monotonic()
    with pytest.raises(MuvaError, match=f"No MLflow server responds at {address}"):
        Tracker(address, "demo")
    assert time.monotonic() - started_at < 5


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:abc", "No MLflow server responds at http://127.0.0.1:abc"),
        ("postgresql://me:hidden@127.0.0.1/mlflow", "cannot be opened"),
        ("sqlite:////proc/mlflow.db", "cannot be opened"),
    ],
)
def test_an_unreachable_address_is_named_immediately(address: str, message: str) -> None:
    started_at = time.monotonic()
    with pytest.raises(MuvaError, match=message) as mistake:
        Tracker(address, "demo")
    assert "hidden" not in str(mistake.value)
    assert time.monotonic() - started_at < 10


def test_a_server_that_is_not_mlflow_is_named(tmp_path: Path) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=f"{tmp_path}")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with (
            pytest.raises(MuvaError, match=f"MLflow at {address} failed"),
            failures_explained(address),
        ):
            Tracker(address, "demo")
        server.shutdown()


@pytest.mark.parametrize("address", ["file:///tmp/mlruns", "mlruns", "sqlite://", "s3://bucket"])
def test_an_address_that_mlflow_cannot_use_is_refused(address: str) -> None:
    with pytest.raises(MuvaError, match="expected sqlite:///FILE"):
        Tracker(address, "demo")


def test_a_file_that_is_not_a_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database " * 100)
    with pytest.raises(MuvaError, match=r"notes\.db cannot be opened"):
        Tracker(f"sqlite:///{file}", "demo")


def test_a_deleted_experiment_is_explained(tracker: Tracker, client: MlflowClient) -> None:
    name = client.get_experiment(tracker.experiment_id).name
    client.delete_experiment(tracker.experiment_id)
    with pytest.raises(MuvaError, match="mlflow experiments restore"):
        Tracker(tracker.tracking_uri, name)


def test_a_relative_database_means_the_same_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("sqlite:///runs of today/mlflow.db", "demo")
    assert tracker.tracking_uri == f"sqlite:///{tmp_path / 'runs of today' / 'mlflow.db'}"
    assert (tmp_path / "runs of today" / "mlflow.db").exists()
    assert not (tmp_path / "mlruns").exists()


def test_a_rejected_upload_is_explained_without_the_password(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("413 Client Error for url: http://me:s3cr3t@tracking:5000/artifacts")

    monkeypatch.setattr(MlflowClient, "log_text", refused)
    with (
        pytest.raises(MuvaError, match="failed: 413 Client Error") as raised,
        tracker.open(name="large", key="large") as run,
    ):
        run.log_text("large.txt", "large")
    assert "s3cr3t" not in str(raised.value)


def test_no_picture_of_people_is_written_where_they_are_hidden(
    tracker: Tracker, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracker.open(name="evaluate", key="evaluate")
    monkeypatch.setenv("MUVA_PEOPLE", "hidden")
    run.log_image("ranked-gallery.png", np.zeros((4, 4, 3), np.uint8))
    run.log_figure("cmc.png", Figure())
    assert [file.path for file in client.list_artifacts(run.ref.run_id)] == ["cmc.png"]
