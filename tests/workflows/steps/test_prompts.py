"""Stage 1 in shares: the same prompts as in one, also when it goes on with other workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from muva.config import load_recipe, with_settings
from muva.data.artifacts import find_artifact
from workflows.runtime.workers import Workers
from workflows.session import open_session
from workflows.steps import checkpoints
from workflows.steps.prompts import learn_prompts, learned_contexts, prompts_step
from workflows.steps.step import StepResult
from workflows.steps.training_inputs import TrainingInputs

EPOCHS = 4
Learn = Callable[[str, Workers], StepResult]
ALONE, SHARED = Workers(count=1, cpus_each=1), Workers(count=2, cpus_each=1)


@pytest.fixture(scope="module")
def learn(
    grounded_home: Callable[[Path], Path],
    smoke_recipe: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Learn:
    """Stage 1 of the smoke recipe, under a name, by so many workers."""
    home = grounded_home(tmp_path_factory.mktemp("home"))
    session = dataclasses.replace(open_session(home=home), tracking_uri=None)
    changes = {"stage1.epochs": EPOCHS, "stage1.lr": 0.01, "stage1.precision": "fp32"}
    config = with_settings(load_recipe(smoke_recipe), changes, where="test")
    sources = [find_artifact(session.store, "datasets", name) for name in config.sources]
    labels = [find_artifact(session.store, "labels", name) for name in config.sources]
    inputs = TrainingInputs.of(config, sources=sources, labels=labels)

    def stage1(name: str, workers: Workers) -> StepResult:
        step = prompts_step(session, inputs, name=name)
        return learn_prompts(session, step, inputs, workers)

    return stage1


@pytest.fixture(scope="module")
def shared(learn: Learn) -> StepResult:
    """By two workers; its checkpoints are kept, as just before the end of the step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "delete_checkpoints", lambda artifact: None)
        return learn("shared", SHARED)


def test_two_shares_learn_what_one_does(learn: Learn, shared: StepResult) -> None:
    alone = learn("alone", ALONE)
    assert alone.artifact.fingerprint == shared.artifact.fingerprint
    expected, found = learned_contexts(alone.artifact), learned_contexts(shared.artifact)
    assert not torch.equal(expected[:6], expected[6:])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # of steps of 0.01
    histories = alone.summary["history"], shared.summary["history"]
    assert {**alone.summary, "history": None} == {**shared.summary, "history": None}
    assert [epoch["epoch"] for epoch in histories[1]] == list(range(1, EPOCHS + 1))
    for key in ("loss", "lr"):
        np.testing.assert_allclose(
            *([one[key] for one in history] for history in histories), rtol=1e-6
        )
    assert not list(alone.artifact.store.list(alone.artifact.key("states")))


def test_what_two_began_one_ends_in_the_same_shares(
    learn: Learn, shared: StepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "delete_checkpoints", lambda artifact: None)
    artifact, store = shared.artifact, shared.artifact.store
    expected = learned_contexts(artifact)

    def shares() -> set[str]:
        return {key.split("/")[3] for key in store.list(artifact.key("states"))}

    kept = {"start", "share-1-of-2", "share-2-of-2", "shares"}
    assert shares() == kept
    # As a driver that was killed leaves it: the first share is done, the second is not.
    last = list(store.list(artifact.key(f"states/share-2-of-2/{EPOCHS:05d}")))
    assert last
    for key in [*last, artifact.key("manifest.json")]:
        store.delete(key)
    store.write(artifact.key("contexts.safetensors"), b"")
    again = learn("shared", Workers(count=1))
    assert again.computed
    assert torch.equal(learned_contexts(artifact), expected)
    assert again.summary == shared.summary
    assert shares() == kept
    monkeypatch.undo()
    checkpoints.delete_checkpoints(artifact)
    assert not shares()
