"""Runs with a tag, read from the file: the answer of MLflow's client, without its import."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from tracking import tagged_runs
from tracking.tagged_runs import runs_with_tag
from tracking.uris import absolute_uri, sqlite_file

TAG = "muva.artifact"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Runs of three experiments: with the tag and without, deleted, nameless, of one time."""
    uri = absolute_uri(f"sqlite:///{tmp_path_factory.mktemp('home') / 'mlflow.db'}")
    client = MlflowClient(uri)
    kept, other, gone = (client.create_experiment(name) for name in ("kept", "other", "gone"))
    for place, experiment in enumerate((kept, other, gone, kept, other)):
        for name in (f"run {place}", None, f"it's run {place}"):
            run = client.create_run(experiment, run_name=name, start_time=1000 - place // 2)
            client.set_tag(run.info.run_id, TAG, f"models/{place % 2}")
            client.set_tag(run.info.run_id, "another", "value")
    client.create_run(kept, run_name="without the tag", tags={"another": "value"})
    deleted = client.create_run(kept, run_name="deleted", tags={TAG: "models/0"})
    client.delete_run(deleted.info.run_id)
    client.delete_experiment(gone)
    return uri


@pytest.mark.parametrize("value", [None, "models/0", "models/1", "models/2"])
def test_the_file_gives_what_the_client_gives(uri: str, value: str | None) -> None:
    file = sqlite_file(uri)
    assert file is not None
    found = tagged_runs._read_directly(file, uri, TAG, value, None)
    assert found is not None, "MLflow's schema is a new one: compare, then add it to _SCHEMAS"
    assert found == tagged_runs._ask_client(uri, TAG, value, None)
    assert len(found) == {None: 12, "models/0": 6, "models/1": 6, "models/2": 0}[value]


@pytest.mark.parametrize(("experiment", "runs"), [("kept", 6), ("gone", 0), ("missing", 0)])
def test_an_experiment_is_read_as_the_client_reads_it(uri: str, experiment: str, runs: int) -> None:
    file = sqlite_file(uri)
    assert file is not None
    found = tagged_runs._read_directly(file, uri, TAG, None, experiment)
    assert found == tagged_runs._ask_client(uri, TAG, None, experiment)
    assert found is not None and len(found) == runs


def test_a_schema_that_was_not_compared_is_left_to_the_client(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = runs_with_tag(uri, TAG)
    monkeypatch.setattr(tagged_runs, "_SCHEMAS", frozenset())
    file = sqlite_file(uri)
    assert file is not None
    assert tagged_runs._read_directly(file, uri, TAG, None, None) is None
    assert runs_with_tag(uri, TAG) == expected


def test_workspaces_are_left_to_the_client(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    file = sqlite_file(uri)
    assert file is not None
    assert tagged_runs._read_directly(file, uri, TAG, None, None) is None


def test_what_is_no_database_of_mlflows_is_left_to_the_client(tmp_path: Path) -> None:
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("no database, but long enough to be one " * 10)
    sqlite3.connect(other).execute("CREATE TABLE runs (run_uuid TEXT)").connection.close()
    for file in (text, other, tmp_path / "missing.db"):
        assert tagged_runs._read_directly(file, f"sqlite:///{file}", TAG, None, None) is None


def test_reading_changes_nothing_and_imports_no_mlflow(uri: str) -> None:
    file = sqlite_file(uri)
    assert file is not None
    before = file.read_bytes()
    program = (
        "import sys; from tracking.tagged_runs import runs_with_tag\n"
        f"assert len(runs_with_tag({uri!r}, {TAG!r})) == 12\n"
        "assert not {'mlflow', 'sqlalchemy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "address",
    ["sqlite:////a/b.db", "sqlite:///a/b c.db", "sqlite:////a/x@y:1/b.db?timeout=5", "sqlite:///"],
)
def test_a_sqlite_address_is_read_as_sqlalchemy_reads_it(address: str) -> None:
    database = make_url(address).database
    assert sqlite_file(address) == (Path(database).absolute() if database else None)
