"""The first use of MLflow's database: by several commands at once, and in a copied home."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils as mlflow_clients
from PIL import Image

from tests.clusters.two_nodes import postgres
from tracking.connection import _client
from tracking.lineage import UsedModel
from tracking.runs import Tracker
from tracking.tagged_runs import KEY_TAG, runs_with_tag

FIRST_USE = """
import sys
from tracking.runs import Tracker
uri, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with Tracker(uri, "muva/demo").open(name=name, key=name) as run:
    run.log_metrics({"town/mAP": 0.5})
    run.set_tags({"x": "y"})
"""


def four_first_uses(uri: str) -> None:
    """Four processes open the database at the same moment, once all have imported MLflow."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, uri, f"run {number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(outputs)
    runs = runs_with_tag(uri, KEY_TAG)
    assert {run.name for run in runs} == {f"run {number}" for number in range(4)}
    assert {run.status for run in runs} == {"FINISHED"}


def test_four_first_commands_at_once_share_one_new_sqlite_file(tmp_path: Path) -> None:
    four_first_uses(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")


def test_four_first_commands_at_once_share_one_new_postgresql_database() -> None:
    with postgres() as uri:
        if uri is None:
            pytest.skip("PostgreSQL is not installed")
        four_first_uses(uri)


def files_in(folder: Path) -> dict[Path, float]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def record(home: Path, key: str) -> str:
    """A run with a picture and a model; the folder of its artifacts."""
    with Tracker(f"sqlite:///{home / 'mlflow.db'}", "muva/demo").open(name=key, key=key) as run:
        run.log_image("sheet.png", Image.new("RGB", (4, 4)))
        run.log_model(UsedModel(name="muva", address="models/muva-0123456789abcdef"), made=True)
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    return client.get_run(run.ref.run_id).info.artifact_uri or ""


@pytest.mark.parametrize("name", ["copy", "a copy with spaces & signs"])
def test_a_copied_home_writes_into_itself_alone_and_keeps_its_pictures(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original, copy = tmp_path / "runs", tmp_path / name
    record(original, "before")
    shutil.copytree(original, copy)
    before = files_in(original)
    with caplog.at_level(logging.WARNING):
        later = record(copy, "after")
    assert files_in(original) == before
    assert f"was copied or moved from {original}" in caplog.text
    uri = f"sqlite:///{copy / 'mlflow.db'}"
    assert later.startswith((copy / "mlartifacts").as_uri())
    client = MlflowClient(uri)
    for run in runs_with_tag(uri, KEY_TAG):
        assert client.list_artifacts(run.ref.run_id)[0].path == "sheet.png"
        found = client.get_run(run.ref.run_id).info.artifact_uri or ""
        assert found.startswith((copy / "mlartifacts").as_uri())
    (model,) = client.search_logged_models([runs_with_tag(uri, KEY_TAG)[0].ref.experiment_id])
    assert model.artifact_location.startswith((copy / "mlartifacts").as_uri())


def test_a_moved_home_finds_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "runs", "before")
    (tmp_path / "runs").rename(tmp_path / "moved")
    # As in another process.
    _client.cache_clear()
    monkeypatch.setattr(mlflow_clients, "_artifact_repos_cache", OrderedDict())
    assert record(tmp_path / "moved", "before").startswith((tmp_path / "moved").as_uri())
    assert not (tmp_path / "runs").exists()


def test_another_path_to_the_same_home_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = record(tmp_path / "runs", "before")
    (tmp_path / "link").symlink_to("runs")
    assert record(tmp_path / "link", "before") == first
    assert "copied or moved" not in caplog.text


def test_locations_that_were_chosen_by_others_are_left_alone(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker(uri, "muva/demo")
    elsewhere = (tmp_path / "shared" / "files").as_uri()
    MlflowClient(uri).create_experiment("theirs", artifact_location=elsewhere)
    shutil.copytree(tmp_path, copy := tmp_path.with_name(f"{tmp_path.name}-copy"))
    client = _client(f"sqlite:///{copy / 'mlflow.db'}")
    theirs = client.get_experiment_by_name("theirs")
    assert theirs is not None
    assert theirs.artifact_location == elsewhere


def test_a_database_without_a_file_of_its_own_keeps_pictures_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracking.database import artifact_location

    found = artifact_location("postgresql://db/mlflow", "muva/demo", home=tmp_path)
    assert found == (tmp_path / "mlartifacts" / "muva-demo").as_uri()
    assert artifact_location("http://server:5000", "muva/demo", home=tmp_path) is None
    assert list(tmp_path.iterdir()) == []
