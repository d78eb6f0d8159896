"""The graph of artifacts, from manifests and from the notes of unfinished steps."""

from __future__ import annotations

import random

import pytest

from muva.data.artifacts import Artifact, fingerprint
from muva.data.lineage import Inputs, Lineage, Role, inputs_in, inputs_on_disk, node_at
from muva.data.store import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    return open_store(tmp_path)


def planned(store: Store, kind: str, name: str) -> Artifact:
    return Artifact(store, kind, name, fingerprint([kind, name]))


def made(store: Store, kind: str, name: str, inputs: Inputs | None = None, **facts) -> Artifact:
    artifact = planned(store, kind, name)
    stored = inputs_on_disk(inputs or {})
    artifact.commit(format_version=1, config={}, inputs=stored, summary={}, facts=facts)
    return artifact


def begun(store: Store, kind: str, name: str, inputs: Inputs) -> Artifact:
    artifact = planned(store, kind, name)
    artifact.start(format_version=1, config={}, inputs=inputs_on_disk(inputs), facts={})
    return artifact


@pytest.fixture
def pipeline(store: Store) -> dict[str, Artifact]:
    """Two sources, their labels, a training with its chosen epoch, an evaluation on a target."""
    town, city, target = (made(store, "datasets", name) for name in ("town", "city", "target"))
    labels = [made(store, "labels", one.name, {Role.DATASET: [one]}) for one in (town, city)]
    trained_on: Inputs = {Role.SOURCE: [town, city], Role.LABELS: labels}
    prompts = made(store, "prompts", "muva", trained_on)
    model = made(store, "models", "muva", {**trained_on, Role.PROMPTS: [prompts]})
    chosen = made(store, "models", "muva-chosen", {Role.TRAINING: [model]})
    seen = {Role.DATASET: [target], Role.MODEL: [chosen]}
    features = made(store, "features", "target-by-muva", seen)
    metrics = made(store, "metrics", "muva-on-target", {Role.FEATURES: [features]}, target="target")
    return {
        "town": town, "city": city, "target": target, "labels of town": labels[0],
        "labels of city": labels[1], "prompts": prompts, "model": model, "chosen": chosen,
        "features": features, "metrics": metrics,
    }  # fmt: skip


def named(pipeline: dict[str, Artifact], addresses) -> set[str]:
    names = {artifact.address: name for name, artifact in pipeline.items()}
    return {names[address] for address in addresses}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["metrics"], set()),
        (["target"], {"features", "metrics"}),
        (["labels of city"], {"prompts", "model", "chosen", "features", "metrics"}),
        (["chosen"], {"features", "metrics"}),
        (["target", "chosen"], {"features", "metrics"}),
        ([], set()),
    ],
)
def test_what_was_made_from_an_artifact_is_found_through_all_steps(
    store: Store, pipeline: dict[str, Artifact], given: list[str], expected: set[str]
) -> None:
    found = Lineage.of(store).made_from([pipeline[name].address for name in given])
    assert named(pipeline, found) == expected


def test_an_unfinished_artifact_is_made_from_what_its_step_has_noted(
    store: Store, pipeline: dict[str, Artifact]
) -> None:
    half = begun(store, "models", "half", {Role.SOURCE: [pipeline["town"]]})
    silent = planned(store, "models", "silent")
    store.write(silent.key("states", "epoch-1"), b"x")
    lineage = Lineage.of(store)
    made_from = lineage.made_from([pipeline["town"].address])
    assert half.address in made_from and silent.address not in made_from
    assert half.address not in lineage, "only what is complete counts as being there"
    assert {half, silent}.isdisjoint(node.artifact for node in lineage.complete("models"))
    assert {half, silent} < {node.artifact for node in lineage.nodes("models")}
    assert lineage.inputs(half.address, Role.SOURCE) == (pipeline["town"].address,)
    assert lineage.inputs(silent.address, Role.SOURCE) == ()


def test_what_an_artifact_needs_is_all_that_it_was_made_from(
    store: Store, pipeline: dict[str, Artifact]
) -> None:
    lineage = Lineage.of(store)
    needed = lineage.needed_by([pipeline["metrics"].address])
    assert named(pipeline, needed) == set(pipeline)
    needed = lineage.needed_by([pipeline["prompts"].address])
    assert named(pipeline, needed) == {
        "prompts", "town", "city", "labels of town", "labels of city"
    }  # fmt: skip
    gone = planned(store, "models", "gone")
    assert lineage.needed_by([gone.address]) == set()


def test_what_is_kept_and_its_inputs_are_in_use_and_the_rest_is_unused(
    store: Store, pipeline: dict[str, Artifact]
) -> None:
    half = begun(store, "models", "half", {Role.SOURCE: [pipeline["town"]]})
    damaged = made(store, "models", "damaged")
    store.write(damaged.key("manifest.json"), b"{")
    keep = [pipeline["prompts"].address, half.address, damaged.address]
    unused = Lineage.of(store).unused(keep=keep)
    assert {artifact.address for artifact in unused} == {
        half.address,
        damaged.address,
        *(pipeline[one].address for one in ("target", "model", "chosen", "features", "metrics")),
    }
    everything = Lineage.of(store).unused(keep=[])
    assert len(everything) == len(pipeline) + 2


def test_a_deleted_input_ends_the_graph_and_is_named(
    store: Store, pipeline: dict[str, Artifact]
) -> None:
    pipeline["features"].delete()
    lineage = Lineage.of(store)
    assert named(pipeline, lineage.needed_by([pipeline["metrics"].address])) == {"metrics"}
    address = pipeline["features"].address
    assert address not in lineage
    with pytest.raises(KeyError, match=f"{address}, which it was made from, is not in the store"):
        lineage[address]


def test_inputs_come_back_from_disk_by_role_and_in_order(store: Store) -> None:
    several = [made(store, "datasets", f"domain-{number}") for number in range(12)]
    one = made(store, "models", "one")
    inputs: Inputs = {
        Role.SOURCE: several,
        Role.LABELS: several[:1],
        Role.HELD_OUT: several[3:4],
        Role.DATASET: several[5:8],
        Role.INIT: [one],
    }
    stored = inputs_on_disk(inputs)
    assert stored["source 11"] == several[11].address
    assert {"labels 0", "held out", "dataset 2", "init"} < stored.keys()
    artifact = planned(store, "models", "muva")
    artifact.commit(format_version=1, config={}, inputs=stored, summary={})
    expected = {role: tuple(one.address for one in given) for role, given in inputs.items()}
    assert node_at(store, artifact.address).inputs == expected
    assert inputs_in({"inputs": stored}) == expected


def test_facts_and_data_sets_are_read_through_the_graph(
    store: Store, pipeline: dict[str, Artifact]
) -> None:
    lineage = Lineage.of(store)
    assert lineage[pipeline["metrics"].address].facts == {"target": "target"}
    datasets = [pipeline[name].address for name in ("city", "target", "town")]
    assert lineage.datasets_of(pipeline["metrics"].address) == sorted(datasets)
    assert lineage.datasets_of(pipeline["labels of city"].address) == [pipeline["city"].address]


@pytest.mark.parametrize("seed", range(5))
def test_both_directions_agree_with_a_walk_along_every_path(store: Store, seed: int) -> None:
    draws = random.Random(seed)
    artifacts: list[Artifact] = []
    given: dict[str, list[str]] = {}
    for number in range(14):
        chosen = draws.sample(artifacts, k=min(len(artifacts), draws.randrange(4)))
        artifacts.append(made(store, "models", f"m{number}", {Role.SOURCE: chosen}))
        given[artifacts[-1].address] = [one.address for one in chosen]

    def before(address: str) -> set[str]:
        return set(given[address]).union(*map(before, given[address]))

    lineage = Lineage.of(store)
    for address in given:
        assert lineage.needed_by([address]) == {address, *before(address)}
        assert lineage.made_from([address]) == {one for one in given if address in before(one)}
