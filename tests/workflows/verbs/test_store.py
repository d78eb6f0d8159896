from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from muva.data.artifacts import Artifact
from muva.data.lineage import Inputs, Role
from tests.data.test_training_images import dataset
from tracking.names import ARTIFACT_TAG
from tracking.runs import runs_with_tag
from workflows.cli import main
from workflows.session import Session, open_session
from workflows.steps.step import Step, run_step


def declared(session: Session, kind: str, name: str, inputs: Inputs) -> Step:
    return Step(
        title=name,
        store=session.store,
        kind=kind,
        name=name,
        format_version=1,
        settings={},
        inputs=inputs,
    )


def make(session: Session, kind: str, name: str, *, inputs: Inputs | None = None) -> Artifact:
    step = declared(session, kind, name, inputs or {})

    def work(_: object) -> dict[str, Any]:
        session.store.write(step.artifact.key("content"), b"x" * 1000)
        return {}

    return run_step(step, session=session, work=work).artifact


def muva(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--json"])
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words", [("store", "gc", "--yes"), ("data", "forget", "people", "--pid", "1", "--yes")]
)
def test_nothing_is_deleted_while_another_command_computes(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = open_session(home=tmp_path)
    people = dataset(tmp_path / "store", "people", [1]).artifact
    make(session, "models", "muva", inputs={Role.SOURCE: [people]})
    kept = sorted(session.store.list())

    def work(_: object) -> dict[str, Any]:
        with pytest.raises(SystemExit, match="1"):
            main([*words, "--home", f"{tmp_path}"])
        return {}

    run_step(declared(session, "models", "other", {}), session=session, work=work)
    assert f"another command (process {os.getpid()}) is computing models-other-" in (
        capsys.readouterr().err
    )
    assert set(kept) <= set(session.store.list())


def test_gc_keeps_what_a_run_uses_and_what_that_was_made_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = open_session(home=tmp_path)
    untracked = Session(home=tmp_path, store=session.store, tracking_uri=None)
    people = dataset(tmp_path / "store", "people", [1]).artifact
    model = make(session, "models", "muva", inputs={Role.SOURCE: [people]})
    lonely = make(untracked, "labels", "lonely")
    home = ("--home", f"{tmp_path}")

    listed = {row["address"]: row["runs"] for row in muva(capsys, "store", "list", *home)}
    assert listed == {people.address: [], model.address: ["muva"], lonely.address: []}

    proposed = muva(capsys, "store", "gc", *home)
    assert [row["address"] for row in proposed["artifacts"]] == [lonely.address]
    assert lonely.manifest() is not None, "without --yes, gc only reports what it would delete"

    muva(capsys, "store", "gc", "--yes", *home)
    assert lonely.manifest() is None
    assert people.manifest() is not None
    assert model.manifest() is not None

    client = MlflowClient(session.tracking_uri)
    for run in client.search_runs(["1"]):
        client.delete_run(run.info.run_id)
    with pytest.raises(SystemExit) as stop:
        main(["store", "gc", "--yes", *home])
    assert stop.value.code == 1
    assert "give --all" in capsys.readouterr().err
    assert model.manifest() is not None, "runs that are elsewhere may use all of it"

    muva(capsys, "store", "gc", "--yes", "--all", *home)
    assert not list(session.store.list())
    assert muva(capsys, "store", "gc", *home)["artifacts"] == []


def test_a_run_that_failed_names_what_it_was_to_make_and_keeps_nothing_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = open_session(home=tmp_path)
    made = make(session, "labels", "people")
    step = declared(session, "models", "muva", {Role.LABELS: [made]})
    broken = step.artifact

    def work(_: object) -> dict[str, Any]:
        session.store.write(broken.key("states", "epoch"), b"x")
        raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError):
        run_step(step, session=session, work=work)
    tagged = {run.value: run.name for run in runs_with_tag(session.tracking_uri, ARTIFACT_TAG)}
    assert tagged == {made.address: "people", broken.address: "muva"}

    proposed = muva(capsys, "store", "gc", "--yes", "--home", f"{tmp_path}")
    assert [row["address"] for row in proposed["artifacts"]] == [broken.address]
    assert made.manifest() is not None


def test_an_unknown_kind_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["store", "list", "--kind", "dataset", "--home", f"{tmp_path}"])
    assert stop.value.code == 2
    assert "datasets" in capsys.readouterr().err
