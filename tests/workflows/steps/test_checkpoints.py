from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from muva.config import Stage2Config
from muva.data.artifacts import Artifact
from muva.data.store import open_store
from muva.errors import MuvaError
from muva.model.muva_model import MuvaModel
from muva.training.report import Checkpoint, EpochReport
from muva.training.stage2 import train_image_encoder
from tests.model.small import small_model
from tests.training.toy_images import ToyImages
from workflows.steps.checkpoints import (
    CHECKPOINTS,
    KEPT,
    delete_checkpoints,
    latest_checkpoint,
    save_epoch,
)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(open_store(tmp_path), "models", "muva", "0" * 16)


def report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        metrics={"loss": 1.0 / epoch},
        step_losses=(),
        checkpoint=lambda: {"epoch": epoch, "weights": torch.full((3,), float(epoch))},
    )


def save(artifact: Artifact, epochs: int) -> None:
    history = []
    for epoch in range(1, epochs + 1):
        history.append({"epoch": epoch, **report(epoch).metrics})
        save_epoch(artifact, report(epoch), history)


def test_nothing_saved_means_start_at_the_beginning(artifact: Artifact) -> None:
    assert latest_checkpoint(artifact) == (None, [])


def test_the_newest_checkpoint_comes_back_with_the_history_so_far(artifact: Artifact) -> None:
    save(artifact, epochs=3)
    checkpoint, history = latest_checkpoint(artifact)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 3
    assert torch.equal(torch.as_tensor(checkpoint["weights"]), torch.full((3,), 3.0))
    assert [epoch["loss"] for epoch in history] == [1.0, 1 / 2, 1 / 3]


def test_few_checkpoints_are_kept(artifact: Artifact) -> None:
    save(artifact, epochs=5)
    kept = {key.split("/")[3] for key in artifact.store.list(artifact.key(CHECKPOINTS))}
    assert sorted(kept) == ["00004", "00005"]
    assert len(kept) == KEPT


@pytest.mark.parametrize("damage", [b"", b"not what was written"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    artifact: Artifact, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    save(artifact, epochs=3)
    artifact.store.write(artifact.key(CHECKPOINTS, "00003", "state.safetensors"), damage)
    checkpoint, history = latest_checkpoint(artifact)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 2
    assert len(history) == 2
    assert "skipping the damaged checkpoint states/00003" in caplog.text


def test_a_checkpoint_that_was_never_finished_gives_way_too(artifact: Artifact) -> None:
    save(artifact, epochs=2)
    artifact.store.delete(artifact.key(CHECKPOINTS, "00002", "state.json"))
    checkpoint, _ = latest_checkpoint(artifact)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 1


@pytest.mark.parametrize("written", [0, 1], ids=["tensors", "values"])
def test_a_disk_that_fills_up_amid_a_checkpoint_leaves_the_one_before(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    images = ToyImages()
    settings = Stage2Config(
        batch_size=8, images_per_identity=2, epochs=3, warmup_epochs=0, precision="fp32"
    )

    def training(model: MuvaModel, checkpoint: Checkpoint | None = None) -> Iterator[EpochReport]:
        return train_image_encoder(
            model=model,
            images=images,
            settings=settings,
            seed=5,
            device=torch.device("cpu"),
            checkpoint=checkpoint,
        )

    undisturbed, stopped, resumed = (small_model(identities=6) for _ in range(3))
    losses = [report.step_losses for report in training(undisturbed)]
    epochs = training(stopped)
    save_epoch(artifact, next(epochs), [{"epoch": 1}])
    left = written
    flush = os.fsync

    def fills_up(file: int) -> None:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        flush(file)

    monkeypatch.setattr(os, "fsync", fills_up)
    with pytest.raises(MuvaError, match=r"the disk is full, .*states/00002/state.* run the same"):
        save_epoch(artifact, next(epochs), [{"epoch": 1}, {"epoch": 2}])
    monkeypatch.undo()

    checkpoint, history = latest_checkpoint(artifact)
    assert history == [{"epoch": 1}]
    rest = []
    for report in training(resumed, checkpoint):
        history.append({"epoch": report.epoch})
        save_epoch(artifact, report, history)
        rest.append(report.step_losses)
    assert rest == losses[1:]
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert len(latest_checkpoint(artifact)[1]) == 3


def test_a_clock_that_was_set_back_changes_nothing_of_which_checkpoint_is_the_newest(
    artifact: Artifact,
) -> None:
    save(artifact, epochs=3)
    for key in artifact.store.list(artifact.key(CHECKPOINTS, "00003")):
        os.utime(artifact.store.path(key), (0, 0))
    checkpoint, _ = latest_checkpoint(artifact)
    assert checkpoint is not None
    assert checkpoint["epoch"] == 3


def test_a_made_artifact_keeps_no_checkpoints(artifact: Artifact) -> None:
    save(artifact, epochs=2)
    delete_checkpoints(artifact)
    assert not list(artifact.store.list(artifact.address))
