"""What training and model selection can access: no held-out identity, no test image, no target."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muva.config import ExperimentConfig
from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.data.records import Record, Split
from muva.data.shards import open_dataset, write_shards
from muva.data.sources import MIN_HELD_OUT_IDENTITIES, Sources, SourcesOnlyStore
from muva.data.store import open_store
from muva.errors import MuvaError

PEOPLE, CAMERAS = 20, 3


def domain(store: Path, name: str, *, cameras: int = CAMERAS, people: int = PEOPLE) -> Artifact:
    """Identities 0 to 19 for training, and five others as queries and gallery."""

    def png(colour: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (4, 8), (colour % 256, 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()

    train: Sequence[tuple[Split, int, int]] = [
        ("train", pid, camid) for pid in range(people) for camid in range(cameras)
    ]
    test: Sequence[tuple[Split, int, int]] = [
        (split, pid, camid)
        for pid in range(100, 105)
        for camid, split in enumerate(("query", "gallery"))
    ]
    records = [
        Record(domain=name, image_id=f"{split}-{pid}-{camid}", split=split, pid=pid, camid=camid,
               source=png(pid))
        for split, pid, camid in [*train, *test]
    ]  # fmt: skip
    artifact = Artifact(open_store(store), "datasets", name, "0" * 16)
    summary = write_shards(records, artifact=artifact)
    artifact.commit(format_version=1, config={}, inputs={}, summary=asdict(summary))
    return artifact


@pytest.fixture
def town_and_city(tmp_path: Path) -> list[Artifact]:
    return [domain(tmp_path, "town"), domain(tmp_path, "city")]


def experiment(**validation: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"sources": ["town", "city"], "targets": ["unseen"], "validation": validation}
    )


def pids_of(rows: object) -> set[int]:
    return set(rows["pid"].to_pylist())  # pyright: ignore[reportIndexIssue]


def test_no_identity_is_held_out_by_default(town_and_city: list[Artifact]) -> None:
    plain = Sources.of(town_and_city, ExperimentConfig())
    assert plain.held_out() == []
    assert plain.identities() == 2 * PEOPLE


def test_held_out_identities_are_not_trained_on(town_and_city: list[Artifact]) -> None:
    sources = Sources.of(town_and_city, experiment(identities=0.25))
    learned = set(sources.pool().identities)
    held_out = {(one.dataset.name, pid) for one in sources.held_out() for pid in pids_of(one.rows)}
    assert not learned & held_out
    assert learned | held_out == {(name, pid) for name in ("town", "city") for pid in range(PEOPLE)}
    assert len(held_out) == 2 * PEOPLE // 4
    assert sources.identities() == len(learned)


def test_the_same_identities_are_held_out_whatever_else_is_pooled(
    town_and_city: list[Artifact],
) -> None:
    town, city = town_and_city
    share = experiment(identities=0.25)
    alone = Sources.of([town], share.model_copy(update={"sources": ("town",)})).held_out()[0]
    beside = Sources.of([city, town], share).held_out()[1]
    assert pids_of(alone.rows) == pids_of(beside.rows)
    other = Sources.of([city], share).held_out()[0]
    assert pids_of(alone.rows) != pids_of(other.rows), "drawn for each domain anew"


def test_a_whole_domain_can_be_held_out(town_and_city: list[Artifact]) -> None:
    sources = Sources.of(town_and_city, experiment(domain="city"))
    assert {name for name, _ in sources.pool().identities} == {"town"}
    (validation_set,) = sources.held_out()
    assert validation_set.dataset.name == "city"
    assert pids_of(validation_set.rows) == set(range(PEOPLE)), (
        "its training identities, none of its test identities"
    )


def test_queries_have_a_match_in_another_camera(town_and_city: list[Artifact]) -> None:
    (held_out, _) = Sources.of(town_and_city, experiment(identities=0.25)).held_out()
    splits = held_out.rows["split"].to_pylist()
    assert set(splits) == {"query"}, "one image of each person and camera, and each may ask"
    assert len(splits) == CAMERAS * len(pids_of(held_out.rows))


def test_no_test_image_of_a_source_can_be_read(town_and_city: list[Artifact]) -> None:
    everything = open_dataset(town_and_city[0]).rows()
    hidden = everything.filter(np.not_equal(everything["split"].to_numpy(), "train"))
    sources = Sources.of(town_and_city, experiment(domain="city"))
    for dataset in [*sources.pool().datasets, *(one.dataset for one in sources.held_out())]:
        assert set(dataset.rows(["split"])["split"].to_pylist()) == {"train"}
        assert not len(dataset.rows(splits=["query", "gallery"]))
        assert not len(dataset.read_shard(0, splits=["gallery"]))
        for row in hidden["row"].to_pylist():
            with pytest.raises(
                MuvaError, match="expected rows of the splits train, found a row of another split"
            ):
                dataset.read_images([row])
        assert len(dataset.read_images(dataset.rows([])["row"].to_numpy())) == PEOPLE * CAMERAS


def test_all_splits_are_trained_on_only_if_configured(town_and_city: list[Artifact]) -> None:
    everyone = experiment(identities=0.25).model_copy(update={"train_on": "all"})
    sources = Sources.of(town_and_city, everyone)
    assert sources.identities() == 2 * (PEOPLE - PEOPLE // 4 + 5)


def test_a_store_for_sources_hides_all_other_data_sets(
    town_and_city: list[Artifact], tmp_path: Path
) -> None:
    target = domain(tmp_path, "unseen")
    whole = open_store(tmp_path)
    limited = SourcesOnlyStore(whole, town_and_city)
    secret = target.key("manifest.json")
    attempts: list[Callable[[], object]] = [
        lambda: limited.read(secret),
        lambda: limited.write(secret, b""),
        lambda: limited.create(secret, b""),
        lambda: limited.exists(secret),
        lambda: limited.size(secret),
        lambda: limited.path(secret),
        lambda: limited.delete(secret),
        lambda: open_dataset(replace(target, store=limited)),
        lambda: find_artifact(limited, "datasets", "unseen"),
    ]
    for attempt in attempts:
        with pytest.raises(MuvaError, match=r"does not belong to a source|no datasets 'unseen'"):
            attempt()
    assert {artifact.name for artifact in list_artifacts(limited)} == {"town", "city"}
    assert open_dataset(target).summary.images, "nothing happened to it"
    limited.write("models/a-1/x", b"1")
    assert whole.read("models/a-1/x") == limited.read("models/a-1/x") == b"1"
    assert open_dataset(replace(town_and_city[0], store=limited)).name == "town"


@pytest.mark.parametrize(
    ("cameras", "people", "share"), [(1, PEOPLE, 0.25), (3, 2, 0.1), (3, PEOPLE, 0.99)]
)
def test_too_few_identities_to_validate_or_to_train_on_are_rejected(
    cameras: int, people: int, share: float, tmp_path: Path
) -> None:
    few = domain(tmp_path, "village", cameras=cameras, people=people)
    config = experiment(identities=share).model_copy(update={"sources": ("village",)})
    with pytest.raises(
        MuvaError, match=r"village: .* at least 2 with a match, and some identities left to train"
    ):
        Sources.of([few], config).held_out()


def test_at_least_two_are_held_out(town_and_city: list[Artifact]) -> None:
    held_out = Sources.of(town_and_city, experiment(identities=0.01)).held_out()
    assert [len(pids_of(one.rows)) for one in held_out] == [MIN_HELD_OUT_IDENTITIES] * 2
