from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muva.data.artifacts import Artifact
from muva.data.store import open_store
from muva.training.report import EpochReport
from workflows.states import KEPT, STATES, delete_states, newest_state, save_state


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(open_store(tmp_path), "models", "muva", "0" * 16)


def report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        metrics={"loss": 1.0 / epoch},
        step_losses=(),
        state=lambda: {"epoch": epoch, "weights": torch.full((3,), float(epoch))},
    )


def save(artifact: Artifact, epochs: int) -> None:
    history = []
    for epoch in range(1, epochs + 1):
        history.append({"epoch": epoch, **report(epoch).metrics})
        save_state(artifact, report(epoch), history)


def test_nothing_saved_means_start_at_the_beginning(artifact: Artifact) -> None:
    assert newest_state(artifact) == (None, [])


def test_the_newest_state_comes_back_with_the_history_so_far(artifact: Artifact) -> None:
    save(artifact, epochs=3)
    state, history = newest_state(artifact)
    assert state is not None
    assert state["epoch"] == 3
    assert torch.equal(torch.as_tensor(state["weights"]), torch.full((3,), 3.0))
    assert [epoch["loss"] for epoch in history] == [1.0, 1 / 2, 1 / 3]


def test_few_states_are_kept(artifact: Artifact) -> None:
    save(artifact, epochs=5)
    kept = {key.split("/")[3] for key in artifact.store.list(artifact.key(STATES))}
    assert sorted(kept) == ["00004", "00005"]
    assert len(kept) == KEPT


@pytest.mark.parametrize("damage", [b"", b"not what was written"])
def test_a_damaged_state_gives_way_to_the_one_before(
    artifact: Artifact, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    save(artifact, epochs=3)
    artifact.store.write(artifact.key(STATES, "00003", "state.safetensors"), damage)
    state, history = newest_state(artifact)
    assert state is not None
    assert state["epoch"] == 2
    assert len(history) == 2
    assert "00003 is passed over" in caplog.text


def test_a_state_that_was_never_finished_gives_way_too(artifact: Artifact) -> None:
    save(artifact, epochs=2)
    artifact.store.delete(artifact.key(STATES, "00002", "state.json"))
    state, _ = newest_state(artifact)
    assert state is not None
    assert state["epoch"] == 1


def test_a_made_artifact_keeps_no_states(artifact: Artifact) -> None:
    save(artifact, epochs=2)
    delete_states(artifact)
    assert not list(artifact.store.list(artifact.address))
