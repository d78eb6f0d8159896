"""A person who is forgotten: gone from what is stored, and what is kept is named."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muva.data.artifacts import Artifact, artifact_at, find_artifact, fingerprint, list_artifacts
from muva.data.benchmarks.benchmark import Trial
from muva.data.decoded import decoded_images
from muva.data.lineage import Role
from muva.data.protocols import read_trials, write_trials
from muva.data.records import JUNK_PID, Record
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.errors import MuvaError
from tests.data.test_training_images import dataset, png
from tracking.names import ARTIFACT_TAG, DATASETS_TAG
from workflows.cli import main
from workflows.session import Session, open_session
from workflows.steps.forget import forget, what_to_forget
from workflows.steps.step import Step, run_step


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A data set of five people, labels, features of those, a model, and runs with pictures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = open_session(home=tmp_path, store=str(tmp_path))
    town = dataset(tmp_path, "town", [3, 5, 7, 8, 9])
    city = dataset(tmp_path, "city", [3, 5])
    write_trials(town.artifact, [Trial(query=("train/5_0.png",), gallery=("train/7_0.png",))])

    labels = made(session, "labels", "town", source=town.artifact.address)
    made(session, "labels", "city", source=city.artifact.address)
    features = made(session, "features", "town-by-clip", dataset=town.artifact.address)
    made(session, "metrics", "clip-on-town", features=features)
    made(session, "models", "muva", source=town.artifact.address, labels=labels)
    return session


def made(session: Session, kind: str, name: str, **inputs: str) -> str:
    """Address of an artifact that a run made; those of labels and models have a picture."""
    artifact = Artifact(session.store, kind, name, fingerprint([kind, name]))
    artifact.store.write(artifact.key("content"), b"5")
    artifact.commit(format_version=1, config={}, inputs=inputs, summary={})
    tag = {ARTIFACT_TAG: artifact.address}
    with session.run(f"make {name}", key=artifact.address, params={}, tags=tag) as run:
        assert run is not None
        if kind in ("labels", "models"):
            run.log_image("some/people.png", np.zeros((4, 4, 3), np.uint8))
    return artifact.address


def begun(session: Session, kind: str, name: str, *datasets: str) -> str:
    """Address of an artifact that was never finished; its run failed and has a picture.

    Without `datasets` nothing says what it was made from, as before steps left notes.
    """
    artifact = Artifact(session.store, kind, name, fingerprint(["begun", kind, name, datasets]))
    artifact.store.write(artifact.key("states", "epoch-1"), b"5")
    tags = {ARTIFACT_TAG: artifact.address}
    if datasets:
        facts = {"datasets": list(datasets)}
        artifact.start(format_version=1, config={}, inputs={}, facts=facts)
        tags[DATASETS_TAG] = ",".join(datasets)
    with (
        pytest.raises(RuntimeError),
        session.run(f"begin {kind} {name}", key=artifact.address, params={}, tags=tags) as run,
    ):
        assert run is not None
        run.log_image("masks/epoch-001.png", np.zeros((4, 4, 3), np.uint8))
        raise RuntimeError("the power is gone")
    return artifact.address


def imported_again(session: Session, records: Sequence[Record]) -> Dataset:
    """Another version of town."""
    artifact = Artifact(session.store, "datasets", "town", "1" * 16)
    summary = asdict(write_shards(records, artifact=artifact))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    return open_dataset(artifact)


def to_learn_from(pid_of: dict[str, int]) -> list[Record]:
    """An image of each id, of the person of each pid."""
    return [
        Record(domain="town", image_id=image, split="train", pid=pid, camid=0, source=png(number))
        for number, (image, pid) in enumerate(pid_of.items())
    ]


def pids_of(dataset: Dataset) -> set[int]:
    return set(dataset.rows(["pid"])["pid"].to_pylist())


def name_in(address: str) -> str:
    return address.rpartition("-")[0]


def named(addresses: Collection[str]) -> set[str]:
    return {name_in(address) for address in addresses}


def muva(capsys: pytest.CaptureFixture[str], session: Session, *words: str, code: int = 0) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--home", str(session.home), "--store", session.store.uri])
    said = capsys.readouterr()
    assert stop.value.code == code, said.err
    return said.err if code else said.out


def test_the_person_is_gone_and_the_others_are_as_they_were(session: Session) -> None:
    old = open_dataset(find_artifact(session.store, "datasets", "town"))
    before = {row["image_id"]: row for row in old.rows().to_pylist()}

    report, remaining = forget(session, "town", [5])

    assert remaining is not None
    [person] = report.people
    assert (person.pid, person.images, person.examples[0]) == (5, 3, "train/5_0.png")
    assert find_artifact(session.store, "datasets", "town") == remaining
    town = open_dataset(remaining)
    rows = town.rows().to_pylist()
    assert {row["pid"] for row in rows} == {3, 7, 8, 9}
    for row, image in zip(rows, town.read_images(range(len(rows))), strict=True):
        pid, number = row["image_id"].removeprefix("train/").removesuffix(".png").split("_")
        assert image == png(int(pid) * 10 + int(number))
        assert {**row, "row": 0} == {**before[row["image_id"]], "row": 0}
    assert read_trials(town) == [Trial(query=(), gallery=("train/7_0.png",))]
    there = [artifact.address for artifact in list_artifacts(session.store, unfinished=True)]
    assert named(there) == {"datasets/town", "datasets/city", "labels/city", "models/muva"}
    folder = Path(session.store.uri) / old.artifact.address
    assert not folder.exists() or not list(folder.iterdir())
    config = (remaining.manifest() or {})["config"]
    assert config.keys() == {"people_forgotten", "remainder"}
    assert config["people_forgotten"] == 1 and re.fullmatch(r"[0-9a-f]{16}", config["remainder"])
    assert [*map(name_in, report.deleted)] == [
        "metrics/clip-on-town",
        "features/town-by-clip",
        "labels/town",
    ], "what was made last comes first"
    assert named(report.kept) == {"models/muva"}
    assert (report.dataset, report.unfinished, report.incomplete) == (old.artifact.address, (), ())
    assert {run["name"] for run in report.runs} == {"make town", "make muva"}


def test_copies_on_this_machine_go_too(session: Session, tmp_path: Path) -> None:
    kept = decoded_images(["town"], count=2, height=4, width=2)
    copy = tmp_path / "cache" / "muva" / "s3" / "0123"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"a shard")
    forget(session, "town", [5])
    assert not kept.path.exists() and not copy.exists()


def test_without_yes_nothing_goes_and_one_sees_who_it_is(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(session.store.list())
    said = muva(capsys, session, "data", "forget", "town", "--pid", "5", "--image", "train/7_1.png")
    for pid in (5, 7):
        images = ", ".join(f"train/{pid}_{number}.png" for number in range(3))
        assert f"datasets/town-{'0' * 16}: pid {pid}, 3 images, {images}" in said
    assert "--yes deletes them" in said
    assert list(session.store.list()) == before
    said = muva(capsys, session, "data", "forget", "town", code=2)
    assert "--pid PID or --image IMAGE_ID" in said


def test_a_person_may_be_named_by_an_image_of_them(session: Session) -> None:
    _, remaining = forget(session, "town", images=["train/7_2.png"])
    assert remaining is not None and pids_of(open_dataset(remaining)) == {3, 5, 8, 9}


def test_who_is_not_there_is_said(session: Session) -> None:
    with pytest.raises(MuvaError, match=r"contains nothing of pid 99\. "):
        forget(session, "town", [99])
    with pytest.raises(MuvaError, match=r"contains nothing of pid 99, the image 5\.png\. "):
        forget(session, "town", [5, 99], ["5.png"])
    with pytest.raises(MuvaError, match="no datasets 'village'"):
        forget(session, "village", [5])


def test_an_image_of_nobody_known_is_no_person(session: Session) -> None:
    query = Record(domain="town", image_id="q", split="query", pid=1, camid=0, source=png(1))
    junk = [
        replace(query, image_id=image, split="gallery", pid=JUNK_PID)
        for image in ("a.png", "b.png")
    ]
    known = replace(query, image_id="g", split="gallery", camid=1)
    imported_again(session, [query, known, *junk])
    with pytest.raises(MuvaError, match=r"a\.png shows no known person"):
        forget(session, "town", images=["a.png"])


def test_one_version_is_acted_on_and_the_others_are_named(session: Session) -> None:
    """The same people and pids as before, but for the first, who is new: 5 is now another."""
    images = {f"train/{pid}_0.png": new for pid, new in ((2, 3), (3, 5), (5, 7), (7, 8))}
    newer = imported_again(session, to_learn_from(images))
    old = find_artifact(session.store, "datasets", "town-" + "0" * 16)

    report, remaining = forget(session, "town", images=["train/5_0.png"])

    assert remaining is not None and pids_of(open_dataset(remaining)) == {3, 5, 8}
    assert newer.artifact.manifest() is None
    assert pids_of(open_dataset(old)) == {3, 5, 7, 8, 9}
    assert report.deleted == (), "labels and the like were made from the other version"
    listed = [(one.dataset, one.pid, one.examples[0]) for one in report.others]
    assert listed == [
        (old.address, 5, "train/5_0.png"),
        (old.address, 7, "train/7_0.png"),
    ]

    _, remaining = forget(session, old.address, [5])
    assert remaining is not None and pids_of(open_dataset(remaining)) == {3, 7, 8, 9}


@pytest.mark.parametrize("which", ["0", "1"])
def test_the_name_means_afterwards_what_it_meant_before(session: Session, which: str) -> None:
    newer = imported_again(session, to_learn_from({"a.png": 5, "b.png": 6}))
    assert find_artifact(session.store, "datasets", "town") == newer.artifact
    _, remaining = forget(session, f"town-{which * 16}", [5])
    meant = find_artifact(session.store, "datasets", "town")
    assert meant == (newer.artifact if which == "0" else remaining)


def test_what_is_left_is_in_use(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    muva(capsys, session, "data", "forget", "town", "--pid", "5", "--yes")
    muva(capsys, session, "store", "gc", "--yes")
    remaining = open_dataset(find_artifact(session.store, "datasets", "town"))
    assert pids_of(remaining) == {3, 7, 8, 9}


@pytest.mark.parametrize("deletions", range(0, 14, 2))
def test_interrupted_it_goes_on(
    session: Session, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """Wherever it was: the store's deletions are counted, and one of them is not done."""
    delete, done = type(session.store).delete, []

    def delete_some(store: Any, key: str) -> None:
        if len(done) == deletions:
            raise KeyboardInterrupt
        done.append(key)
        delete(store, key)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(type(session.store), "delete", delete_some)
        forget(session, "town", images=["train/5_0.png"])
    report, _ = forget(session, "town", images=["train/5_0.png"])

    there = [artifact.address for artifact in list_artifacts(session.store, unfinished=True)]
    assert named(there) == {"datasets/town", "datasets/city", "labels/city", "models/muva"}
    [remaining] = [address for address in there if address.startswith("datasets/town-")]
    assert pids_of(open_dataset(artifact_at(session.store, remaining))) == {
        3,
        7,
        8,
        9,
    }
    assert {"make town", "make muva"} <= {run["name"] for run in report.runs}
    with pytest.raises(MuvaError, match="contains nothing of"):
        forget(session, "town", images=["train/5_0.png"])


def test_interrupted_while_it_writes_it_goes_on(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(
            Artifact, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        forget(session, "town", [5])
    _, remaining = forget(session, "town", [5])
    assert remaining is not None and pids_of(open_dataset(remaining)) == {3, 7, 8, 9}


def test_what_was_never_finished_goes_or_is_named(session: Session) -> None:
    own = {
        begun(session, *one)
        for one in (
            ("datasets", "town"),
            ("labels", "town"),
            ("features", "town-by-clip", "town"),
            ("metrics", "clip-on-town", "town"),
        )
    }
    others = {
        begun(session, "labels", "city", "city"),
        begun(session, "metrics", "clip-on-city", "city"),
        begun(session, "models", "of-city", "city"),
    }
    trainings = {
        begun(session, "models", "muva", "city", "town"),
        begun(session, "prompts", "muva"),
    }

    report, _ = forget(session, "town", [5])

    assert set(report.unfinished) == own
    assert set(report.incomplete) == trainings
    there = {artifact.address for artifact in list_artifacts(session.store, unfinished=True)}
    assert own.isdisjoint(there) and others | trainings <= there
    shown = {run["name"] for run in report.runs}
    assert {"begin labels town", "begin models muva", "begin prompts muva"} <= shown
    of_city = {"begin labels city", "begin metrics clip-on-city", "begin models of-city"}
    assert not shown & {*of_city, "make city"}


def test_unfinished_ones_go_where_no_version_holds_the_person(session: Session) -> None:
    forget(session, "town", [5])
    labels = begun(session, "labels", "town")
    report, remaining = forget(session, "town", [5])
    assert remaining is None and report.dataset is None
    assert report.unfinished == (labels,)
    assert pids_of(open_dataset(find_artifact(session.store, "datasets", "town"))) == {3, 7, 8, 9}
    broken_off = begun(session, "datasets", "village")
    assert forget(session, "village", [5])[0].unfinished == (broken_off,)


def test_searches_stay(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    town = find_artifact(session.store, "datasets", "town")
    study = Artifact(session.store, "studies", "base", "2" * 16)
    config = {"space": {}, "objectives": ["held-out/mAP"]}
    source = {"source 0": town.address}
    study.commit(format_version=1, config=config, inputs=source, summary={})
    trial = Artifact(session.store, "trials", f"base-{'2' * 16}", "3" * 16)
    inputs = {"study": study.address}
    trial.commit(format_version=1, config={}, inputs=inputs, summary={})
    features = find_artifact(session.store, "features", "town-by-clip")
    evaluated = made(session, "metrics", "study-on-town", features=features.address)

    said = muva(capsys, session, "data", "forget", "town", "--pid", "5", "--yes")

    assert "Hyperparameter searches, kept" in said
    assert study.address in said and trial.address in said
    assert study.manifest() and trial.manifest()
    assert evaluated not in {artifact.address for artifact in list_artifacts(session.store)}


def test_reports_on_this_machine_are_named(session: Session) -> None:
    newer = imported_again(session, to_learn_from({"a.png": 4, "b.png": 6}))
    labels = Artifact(session.store, "labels", "town", "5" * 16)
    inputs = {"dataset": newer.artifact.address}
    labels.commit(format_version=1, config={}, inputs=inputs, summary={})
    of_old = find_artifact(session.store, "labels", f"town-{fingerprint(['labels', 'town'])}")
    folder = session.home / "reports"
    folder.mkdir()
    old, gone = (f"masks-town-{one}.html" for one in (of_old.fingerprint, "0123456789abcdef"))
    theirs, anothers = "town-train_5_0.png.png", "town-train_7_0.png.png"
    of_others = (f"masks-town-{labels.fingerprint}.html", f"masks-city-{'6' * 16}.html", anothers)
    for name in (old, gone, theirs, *of_others):
        (folder / name).write_bytes(b"people")

    report = what_to_forget(session, f"town-{'0' * 16}", [5])
    assert {Path(file).name for file in report.reports} == {old, gone, theirs}


def test_a_training_that_failed_and_left_nothing_is_named(session: Session) -> None:
    town = find_artifact(session.store, "datasets", "town")
    step = Step(
        title="train short",
        store=session.store,
        kind="models",
        name="short",
        format_version=1,
        settings={},
        inputs={Role.SOURCE: [town]},
    )

    def work(log_metrics: Any) -> dict[str, Any]:
        log_metrics.run.log_image_buffered("masks/epoch-001.png", np.zeros((4, 4, 3), np.uint8))
        raise MuvaError("diverged")

    with pytest.raises(MuvaError, match="diverged"):
        run_step(step, session=session, work=work)
    assert "train short" in {run["name"] for run in what_to_forget(session, "town", [5]).runs}
