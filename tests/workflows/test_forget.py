"""A person who is forgotten: gone from all that is stored, and named is what is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from muva.data.artifacts import Artifact, find_artifact, fingerprint, list_artifacts
from muva.data.benchmarks.benchmark import Trial
from muva.data.decoded import decoded_images
from muva.data.protocols import read_trials, write_trials
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from tests.data.test_training_images import dataset, png
from workflows.cli import main
from workflows.forget import forget
from workflows.session import Session, open_session
from workflows.steps import ARTIFACT_TAG


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A data set of five people, labels, features of those, a model, and runs with pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = open_session(home=tmp_path, store=str(tmp_path))
    town = dataset(tmp_path, "town", [3, 5, 7, 8, 9])
    city = dataset(tmp_path, "city", [3, 5])
    write_trials(town.artifact, [Trial(query=("train/5_0.png",), gallery=("train/7_0.png",))])

    def made(kind: str, name: str, **inputs: str) -> str:
        artifact = Artifact(session.store, kind, name, fingerprint([kind, name]))
        artifact.store.write(artifact.key("content"), b"5")
        artifact.commit(format_version=1, config={}, inputs=inputs, summary={})
        with session.run(f"make {name}", key=artifact.address, params={}) as run:
            assert run is not None
            run.tags({ARTIFACT_TAG: artifact.address})
            if kind in ("labels", "models"):
                run.picture("some/people.png", np.zeros((4, 4, 3), np.uint8))
        return artifact.address

    labels = made("labels", "town", source=town.artifact.address)
    made("labels", "city", source=city.artifact.address)
    features = made("features", "town-by-clip", dataset=town.artifact.address)
    made("metrics", "clip-on-town", features=features)
    made("models", "muva", source=town.artifact.address, labels=labels)
    return session


def test_the_person_is_gone_and_the_others_are_as_they_were(session: Session) -> None:
    old = open_dataset(find_artifact(session.store, "datasets", "town"))
    before = {row["image_id"]: row for row in old.rows().to_pylist()}

    traces, (left,) = forget(session, "town", [5])

    assert traces.images == 3
    assert find_artifact(session.store, "datasets", "town") == left
    town = open_dataset(left)
    rows = town.rows().to_pylist()
    assert {row["pid"] for row in rows} == {3, 7, 8, 9}
    for row, image in zip(rows, town.read_images(range(len(rows))), strict=True):
        pid, number = row["image_id"].removeprefix("train/").removesuffix(".png").split("_")
        assert image == png(int(pid) * 10 + int(number))
        assert {**row, "row": 0} == {**before[row["image_id"]], "row": 0}
    assert read_trials(town) == [Trial(query=(), gallery=("train/7_0.png",))]
    there = {artifact.address.rpartition("-")[0] for artifact in list_artifacts(session.store)}
    assert there == {"datasets/town", "datasets/city", "labels/city", "models/muva"}
    folder = Path(session.store.uri) / old.artifact.address
    assert not folder.exists() or not list(folder.iterdir())
    assert "5" not in json.dumps((left.manifest() or {})["config"])
    assert [one.rpartition("-")[0] for one in traces.stays] == ["models/muva"]
    assert {run["name"] for run in traces.runs} == {"make town", "make muva"}


def test_copies_on_this_machine_go_too(session: Session, tmp_path: Path) -> None:
    kept = decoded_images(["town"], count=2, height=4, width=2)
    copy = tmp_path / "cache" / "muva" / "s3" / "0123"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"a shard")
    forget(session, "town", [5])
    assert not kept.path.exists() and not copy.exists()


def test_without_yes_nothing_goes(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(session.store.list())
    words = ["data", "forget", "town", "--pid", "5", "--pid", "7", "--home", str(session.home)]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--store", session.store.uri])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "6 images in datasets/town" in said and "--yes does it" in said
    assert list(session.store.list()) == before


def test_who_is_not_there_is_said(session: Session) -> None:
    with pytest.raises(MuvaError, match="holds no image of 99"):
        forget(session, "town", [99])
    with pytest.raises(MuvaError, match="holds no image of 5 in a data set of that name"):
        forget(session, "village", [5])
