"""Actors that hold an expert: shards handed out again when a process dies, images that end it."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import requests
import torch
from ray.exceptions import OutOfMemoryError

from muva.config import PHRASES, GroundingConfig
from muva.data.artifacts import Artifact
from muva.data.shards import Dataset, open_dataset, write_shards
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.grounding.expert import Expert, Grounding, GroundingImage
from muva.grounding.experts import ChosenExpert, choose_expert
from muva.grounding.ground import MAX_EXPERT_FAILURES, BrokenExpertError, RetryPlan
from muva.grounding.labels import label_key, labelled_shards, open_labels, summarise_labels
from muva.synthetic import synthetic_records
from tests.grounding.small_experts import MAKERS
from workflows.runtime.expert_pool import (
    MAX_DEATHS,
    MAX_DEATHS_LOADING,
    Actors,
    GroundingJob,
    GroundingProgress,
    ShardQueue,
    _check_gpu,
    _Grounder,
    actors_that_fit,
    ground_shards,
)
from workflows.runtime.messages import MessageQueue
from workflows.runtime.tasks import get_results


@pytest.fixture
def town(tmp_path: Path) -> Dataset:
    return rendered(tmp_path, "syn-station")


def rendered(folder: Path, domain: str, *, people: int = 2) -> Dataset:
    """A synthetic domain in several small shards."""
    artifact = Artifact(open_store(folder), "datasets", domain, "0" * 16)
    records = synthetic_records(
        domain, train_people=people, test_people=2, images_per_camera=2, height=64, width=32
    )
    summary = dataclasses.asdict(write_shards(records, artifact=artifact, shard_bytes=8000))
    artifact.commit(format_version=1, config={}, inputs={}, summary=summary)
    made = open_dataset(artifact)
    assert len(made.shards) > 2
    return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Staged(ChosenExpert):
    """The annotated expert, but its process dies at some images."""

    deadly: tuple[str, ...] = ()
    dies_loading: bool = False

    def load(self) -> Expert:
        """See `ChosenExpert`."""
        if self.dies_loading:
            os.kill(os.getpid(), signal.SIGKILL)
        return _Deadly(self)


class _Deadly:
    def __init__(self, staged: Staged) -> None:
        self._staged = staged
        self._annotated = choose_expert(GroundingConfig()).load()

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        if any(image.image_id in self._staged.deadly for image in images):
            time.sleep(0.2)  # what crashes does so after it has begun
            os.kill(os.getpid(), signal.SIGKILL)
        return self._annotated.ground(images, phrases)


def staged(**how: Any) -> Staged:
    return Staged(**{**vars(choose_expert(GroundingConfig())), **how})


def grounded(town: Dataset, expert: ChosenExpert, *, actors: int = 1):
    labels = Artifact(town.artifact.store, "labels", town.name, "1" * 16)
    job = GroundingJob(
        dataset=town,
        labels=labels,
        shards=set(range(len(town.shards))) - labelled_shards(labels),
        max_quarantined=5,
    )
    [progress] = ground_shards([job], expert, PHRASES, actors=Actors(count=actors))
    return labels, progress


def test_an_image_that_ends_the_process_is_set_aside_and_the_rest_is_labelled(
    ray_session: None, town: Dataset
) -> None:
    ids = town.rows(["image_id"])["image_id"].to_pylist()
    bad = ids[len(ids) // 2]
    labels, progress = grounded(town, staged(deadly=(bad,)), actors=2)
    summary = summarise_labels(labels, town, parts=list(PHRASES))
    assert (summary["failed"], progress.failed, progress.images) == (1, 1, len(ids))
    labels.commit(format_version=1, config={}, inputs={}, summary=summary)
    _, found = open_labels(labels, dataset=town).boxes(ids)
    assert not found[ids.index(bad)].any()
    assert found[:, 0].sum() == len(ids) - 1


def test_an_expert_whose_processes_die_while_they_load_it_is_named(
    ray_session: None, town: Dataset
) -> None:
    with pytest.raises(
        MuvaError, match=rf"annotated: {MAX_DEATHS_LOADING} processes died while they lo"
    ):
        grounded(town, staged(dies_loading=True))


def test_an_expert_that_fits_on_no_node_is_told_before_it_is_loaded(
    ray_session: None, town: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MAKERS["owlv2"](tmp_path / "owl")
    config = GroundingConfig(expert="owlv2", checkpoint=str(tmp_path / "owl"))
    expert = choose_expert(config)
    weights = expert.weight_bytes()
    assert weights is not None
    on_disk = sum(file.stat().st_size for file in (tmp_path / "owl").glob("*.safetensors"))
    assert 0.9 * on_disk < weights <= on_disk
    monkeypatch.setattr(ChosenExpert, "weight_bytes", lambda self: 9 * 10**12)
    with pytest.raises(
        MuvaError, match=r"owlv2: needs about 10800\.5 GB of memory; the largest node .* has \d"
    ):
        job = GroundingJob(dataset=town, labels=town.artifact, shards=[0], max_quarantined=1)
        ground_shards([job], expert, PHRASES, actors=Actors())


def test_a_gpu_without_room_is_told_before_the_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert = choose_expert(GroundingConfig(expert="tiny"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3.0e9, 8.0e9))
    _check_gpu(expert)
    monkeypatch.setattr(ChosenExpert, "weight_bytes", lambda self: 5 * 10**9)
    with pytest.raises(
        MuvaError,
        match=r"needs about 6\.0 GB .* 3\.0 of 8\.0 GB are free\. Choose one that fits \(tiny, ",
    ):
        _check_gpu(expert)


def test_what_an_actor_needs_and_how_many_have_room() -> None:
    laptop = {"CPU": 8.0, "memory": 4e9}
    server = {"CPU": 16.0, "GPU": 2.0, "memory": 64e9}
    annotated = choose_expert(GroundingConfig())
    assert Actors().needs(annotated, [laptop]) == {"CPU": 1.0, "memory": 0.5e9}
    assert actors_that_fit({"CPU": 1.0, "memory": 0.5e9}, [laptop, server]) == 8 + 16
    assert actors_that_fit({"CPU": 1.0, "memory": 1e9}, [laptop, server]) == 4 + 16
    assert actors_that_fit({"CPU": 3.0}, [laptop, server]) == 2 + 5
    assert actors_that_fit({"CPU": 1.0, "GPU": 0.3}, [laptop, server]) == 6
    hub = Staged(**{**vars(annotated), "name": "florence-2"})
    assert Actors().needs(hub, [server]) == {"CPU": 1.0, "GPU": 1.0}
    assert Actors(gpus_each=0.5).needs(hub, [server]) == {"CPU": 1.0, "GPU": 0.5}
    assert "GPU" not in Actors().needs(hub, [laptop])


def test_a_dead_shard_is_looked_at_more_closely_each_time() -> None:
    queue = ShardQueue([(0, 7), (0, 8)], max_quarantined=[1])
    shard, plan = queue.take()
    assert (shard, plan.isolate, plan.quarantine) == ((0, 7), frozenset(), frozenset())
    queue.on_death(shard, begun=False, at=None, why="")
    queue.on_death(shard, begun=True, at=range(32, 64), why="")
    queue.waiting.popleft()
    _, plan = queue.take()
    assert (plan.isolate, plan.quarantine) == (frozenset(range(32, 64)), frozenset())
    for _ in range(2):
        queue.on_death(shard, begun=True, at=range(40, 41), why="")
        _, plan = queue.take()
    assert plan.quarantine == {40}
    queue.on_death(shard, begun=True, at=range(41, 42), why="")
    with pytest.raises(
        MuvaError, match=r"2 images killed the expert's process twice.*row 41.*boom"
    ):
        queue.on_death(shard, begun=True, at=range(41, 42), why="boom")


def test_a_row_that_is_aside_already_is_not_blamed_for_ever() -> None:
    shard = (0, 3)
    queue = ShardQueue([shard], max_quarantined=[1])
    for _ in range(2):
        queue.on_death(shard, begun=True, at=range(4, 5), why="boom")
        queue.take()
    for _ in range(MAX_DEATHS - 1):
        queue.on_death(shard, begun=True, at=range(4, 5), why="boom")
        queue.take()
    with pytest.raises(
        MuvaError,
        match=r"shard 3: \d processes died while they grounded it, with no image to blame",
    ):
        queue.on_death(shard, begun=True, at=range(4, 5), why="boom")


def test_an_expert_that_breaks_gets_one_more_process_for_the_shard() -> None:
    first, second = (0, 3), (0, 4)
    queue = ShardQueue([first, second], max_quarantined=[1])
    queue.take()
    error = BrokenExpertError("failed at 9 of 9 images")
    queue.on_broken_expert(first, error)
    assert queue.take()[0] == first
    queue.take()
    with pytest.raises(BrokenExpertError, match="failed at 9 of 9"):
        queue.on_broken_expert(second, error)
    queue.on_success()
    with pytest.raises(BrokenExpertError, match="failed at 9 of 9"):
        queue.on_broken_expert(first, error)


def by_one_actor(
    town: Dataset,
    labels: Artifact,
    shards: Iterable[int],
    *,
    expert: ChosenExpert | None = None,
    max_quarantined: float = 0,
) -> None:
    """Labels by the annotated expert unless another is given."""
    chosen = expert or choose_expert(GroundingConfig())
    job = GroundingJob(dataset=town, labels=labels, shards=shards, max_quarantined=max_quarantined)
    ground_shards([job], chosen, PHRASES, actors=Actors(count=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picky(ChosenExpert):
    """The annotated expert, but it fails at some images."""

    fails_at: frozenset[str] = frozenset()

    def load(self) -> Expert:
        expert, fails_at = choose_expert(GroundingConfig()).load(), self.fails_at

        class Failing:
            def ground(
                self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
            ) -> list[list[Grounding]]:
                if any(image.image_id in fails_at for image in images):
                    raise RuntimeError("boom")
                return expert.ground(images, phrases)

        return Failing()


def test_too_many_images_aside_stop_it_early_and_are_asked_again(
    ray_session: None, town: Dataset
) -> None:
    labels = Artifact(town.artifact.store, "labels", town.name, "4" * 16)
    ids = town.rows(["image_id"])["image_id"].to_pylist()
    picky = Picky(**vars(choose_expert(GroundingConfig())), fails_at=frozenset(ids[:1]))
    shards = range(len(town.shards))
    with pytest.raises(MuvaError, match=rf"1 of the first .* {ids[0]}: the expert failed twice"):
        by_one_actor(town, labels, shards, expert=picky)
    assert 0 not in labelled_shards(labels)
    broken = Picky(**vars(choose_expert(GroundingConfig())), fails_at=frozenset(ids))
    left = set(shards) - labelled_shards(labels)
    large = [shard for shard in shards if town.shards[shard].rows > MAX_EXPERT_FAILURES]
    assert 0 in large
    with pytest.raises(BrokenExpertError, match="Nothing of this shard is stored"):
        by_one_actor(town, labels, large[:1], expert=broken, max_quarantined=99)
    by_one_actor(town, labels, left)
    summarise_labels(labels, town, parts=list(PHRASES))


def test_a_process_that_rays_watch_over_memory_ends_is_lost_like_any_other(
    ray_session: None, town: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []

    def first_result(references: Sequence[ray.ObjectRef]) -> list[Any]:
        found = get_results(references)
        if found[0] is not None and not ended:  # the first shard's report
            ended.append(1)
            raise OutOfMemoryError("the node was low on memory")
        return found

    monkeypatch.setattr("workflows.runtime.expert_pool.get_results", first_result)
    labels = Artifact(town.artifact.store, "labels", town.name, "5" * 16)
    by_one_actor(town, labels, range(len(town.shards)))
    assert ended and labelled_shards(labels) == set(range(len(town.shards)))


def test_a_shard_at_which_processes_die_before_they_look_is_given_up() -> None:
    shard = (0, 3)
    queue = ShardQueue([shard], max_quarantined=[1])
    for _ in range(MAX_DEATHS - 1):
        queue.on_death(shard, begun=True, at=None, why="boom")
        queue.take()
    with pytest.raises(MuvaError, match=r"shard 3: \d processes died while they grounded it.*boom"):
        queue.on_death(shard, begun=True, at=None, why="boom")


def test_what_shards_took_adds_up_while_they_are_done(ray_session: None, town: Dataset) -> None:
    seen: list[GroundingProgress] = []
    labels = Artifact(town.artifact.store, "labels", town.name, "2" * 16)
    job = GroundingJob(
        dataset=town, labels=labels, shards=range(len(town.shards)), max_quarantined=1
    )
    [progress] = ground_shards(
        [job],
        choose_expert(GroundingConfig()),
        PHRASES,
        actors=Actors(count=1),
        on_progress=lambda every: seen.append(dataclasses.replace(every[0])),
    )
    grounded = [one.done + one.in_flight for one in seen]
    assert grounded == sorted(grounded)
    assert seen[-1].done == progress.done == progress.images == town.summary.images
    assert seen[-1].in_flight == 0
    assert (progress.actors, progress.starting) == (1, 0)
    assert progress.decode_s > 0 and progress.model_s > 0 and progress.elapsed_s > 0
    assert progress.images_per_s == pytest.approx(progress.images / progress.elapsed_s)
    assert ray.is_initialized()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted(Picky):
    """As `Picky`, but each time that it is loaded leaves a file."""

    folder: Path

    def load(self) -> Expert:
        (self.folder / uuid.uuid4().hex).touch()
        return super().load()


def test_one_pool_grounds_two_data_sets_as_if_each_were_alone(
    ray_session: None, town: Dataset, tmp_path: Path
) -> None:
    city = rendered(tmp_path, "syn-harbour", people=3)
    ids = [set(dataset.rows(["image_id"])["image_id"].to_pylist()) for dataset in (city, town)]
    failing = min(ids[0] - ids[1])
    loads = tmp_path / "loads"
    loads.mkdir()
    expert = Counted(
        **vars(choose_expert(GroundingConfig())), fails_at=frozenset([failing]), folder=loads
    )

    def job(dataset: Dataset, fingerprint: str, max_quarantined: float) -> GroundingJob:
        return GroundingJob(
            dataset=dataset,
            labels=Artifact(dataset.artifact.store, "labels", dataset.name, fingerprint * 16),
            shards=range(len(dataset.shards)),
            max_quarantined=max_quarantined,
        )

    together = [job(town, "6", 0), job(city, "6", 1)]
    actors = Actors(count=1)
    progress = ground_shards(together, expert, PHRASES, actors=actors)
    assert len(list(loads.iterdir())) == 1, "both data sets by one process, which loads it once"
    assert [one.images for one in progress] == [one.dataset.summary.images for one in together]
    assert [one.failed for one in progress] == [0, 1], "a limit for each data set of its own"

    for shared, alone in zip(together, (job(town, "7", 0), job(city, "7", 1)), strict=True):
        [_] = ground_shards([alone], expert, PHRASES, actors=actors)
        for index in alone.shards:
            parts = [one.labels.store.read(one.labels.key(label_key(index))) for one in
                     (shared, alone)]  # fmt: skip
            assert parts[0] == parts[1], (alone.dataset.name, index)

    with pytest.raises(MuvaError, match=r"syn-harbour: expert annotated failed at 1 of the first"):
        ground_shards([job(town, "8", 1), job(city, "8", 0)], expert, PHRASES, actors=actors)


def test_prometheus_sees_what_an_actor_has_done(ray_session: None, town: Dataset) -> None:
    labels = Artifact(town.artifact.store, "labels", town.name, "3" * 16)
    expert = choose_expert(GroundingConfig())
    kind: Any = ray.remote(num_cpus=1)(_Grounder)
    jobs = [(town.artifact, labels)]
    actor = kind.remote(jobs, expert, PHRASES, 1, False, MessageQueue())
    ray.get(actor.load.remote())
    report: Any = ray.get(actor.ground.remote(0, 0, RetryPlan()))
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = rf'ray_muva_grounding_images_total{{.*dataset="{town.name}".*}} {report.images}\.0'
    ends_at = time.monotonic() + 60
    while not re.search(wanted, requests.get(address, timeout=10).text):
        assert time.monotonic() < ends_at, "the counter never came"
        time.sleep(0.5)
    ray.kill(actor)
