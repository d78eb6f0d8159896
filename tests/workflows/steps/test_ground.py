"""`muva ground`: shards shared by whoever works on them, phrases of one's own."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from benchmarks.disturbed_server import Disturber, disturbed_server
from muva.config import GroundingConfig, SyntheticConfig
from muva.data.artifacts import Artifact, find_artifact
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.data.store import Store
from muva.errors import MuvaError
from muva.grounding.experts import choose_expert
from muva.grounding.ground import RetryPlan
from muva.grounding.labels import label_key, open_labels
from muva.synthetic import synthetic_records
from tests.grounding.small_experts import MAKERS
from tests.workflows.commands import finish, start
from workflows.cli import main
from workflows.runtime.expert_pool import Actors, _Grounder
from workflows.runtime.messages import MessageQueue
from workflows.session import Session, open_session
from workflows.steps.ground import ground

PEOPLE = SyntheticConfig(train_people=4, test_people=4, height=64, width=32)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return dataclasses.replace(open_session(home=tmp_path), tracking_uri=None)


@pytest.fixture
def town(session: Session) -> Dataset:
    """Synthetic people in many small shards."""
    artifact = Artifact(session.store, "datasets", "syn-station", "0" * 16)
    records = synthetic_records("syn-station", **PEOPLE.model_dump())
    summary = dataclasses.asdict(write_shards(records, artifact=artifact, shard_bytes=4000))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    made = open_dataset(artifact)
    assert len(made.shards) > 5
    return made


def test_a_shard_that_another_driver_has_finished_is_not_computed_again(
    ray_session: None, town: Dataset
) -> None:
    labels = Artifact(town.artifact.store, "labels", town.name, "1" * 16)
    expert = choose_expert(GroundingConfig())
    jobs = [(town.artifact, labels)]
    grounder = _Grounder(jobs, expert, GroundingConfig().phrases, 1, False, MessageQueue())
    grounder.load()
    key = labels.key(label_key(2))
    grounder.ground(0, 2, RetryPlan())
    written = labels.store.read(key)
    labels.store.write(key, b"of the other driver")
    grounder.ground(0, 2, RetryPlan())
    assert labels.store.read(key) == b"of the other driver"
    labels.store.write(key, written)


def test_two_drivers_at_once_make_one_label_set(
    ray_session: None, session: Session, town: Dataset
) -> None:
    found = []
    drivers = [
        threading.Thread(
            target=lambda: found.extend(ground(session, [town.artifact], GroundingConfig()))
        )
        for _ in range(2)
    ]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join(120)
    assert len(found) == 2
    assert found[0].artifact == found[1].artifact
    assert found[0].summary == found[1].summary
    ids = town.rows(["image_id"])["image_id"].to_pylist()
    boxes, _ = open_labels(found[0].artifact, dataset=town).boxes(ids)
    assert boxes.shape == (len(ids), 3, 4)


def test_an_expert_with_weights_labels_phrases_of_ones_own(
    ray_session: None, session: Session, town: Dataset, tmp_path: Path
) -> None:
    MAKERS["owlv2"](tmp_path / "owl")
    config = GroundingConfig(
        expert="owlv2", checkpoint=str(tmp_path / "owl"), phrases={"shoes": "the shoes"}
    )
    [done] = ground(session, [town.artifact], config, Actors(count=1, gpus_each=0))
    assert done.summary["parts"] == ["shoes"]
    labels = open_labels(done.artifact, dataset=town)
    with pytest.raises(MuvaError, match=r"expected labels of head.* found only shoes"):
        labels.boxes([], parts=["head"])
    manifest = done.artifact.manifest()
    assert manifest is not None
    assert manifest["config"]["revision"].startswith("sha256:")
    assert manifest["config"]["precision"] == "fp32"
    [other] = ground(session, [town.artifact], GroundingConfig(), Actors(count=1))
    assert other.artifact != done.artifact


def test_people_in_s3_are_grounded_by_one_command_on_a_server_that_fails_now_and_then(
    ray_session: None,
    s3_server: str,
    s3: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = (f"--set=synthetic.{key}={value}" for key, value in PEOPLE.model_dump().items())
    words = ("ground", "syn-station", "--expert=annotated", *sizes, "--store", s3.uri, "--json")
    disturber = Disturber(seed=0, share=0.3)
    with disturbed_server(s3_server, disturber) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        output = finish(start(tmp_path / "home", *words))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    labels = find_artifact(s3, "labels", "syn-station")
    assert labels.uri in output
    dataset = open_dataset(find_artifact(s3, "datasets", "syn-station"))
    ids = dataset.rows(["image_id"])["image_id"].to_pylist()
    boxes, found = open_labels(labels, dataset=dataset).boxes(ids)
    assert found[:, 0].all() and (boxes[:, 0, 2] > boxes[:, 0, 0]).all()
    assert sum(disturber.disturbed.values()) > 3
    with pytest.raises(SystemExit) as stop:
        main([*words, "--home", f"{tmp_path / 'home'}"])
    assert stop.value.code == 0
    assert "exists, labels/syn-station" in "".join(capsys.readouterr())
