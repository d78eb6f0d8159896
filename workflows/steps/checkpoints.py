"""Checkpoints of a training, saved in the folder of its artifact, and read when it is resumed.

The newest complete checkpoint is used. A damaged one is skipped with a warning.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from muva.data.artifacts import Artifact
from muva.errors import MuvaError
from muva.models import local_copy
from muva.training.checkpoints import VALUES, load_checkpoint, save_checkpoint
from muva.training.divergence import DivergedError, NotFiniteError
from muva.training.report import Checkpoint, EpochReport

CHECKPOINTS = "states"
"""The folder of checkpoints within an artifact."""
DIVERGED = "diverged"
"""The folder of the checkpoint before a step whose loss was not finite."""
KEPT = 2
"""The newest checkpoint, and one as a fallback."""

History = list[dict[str, Any]]
"""The metrics of each epoch, from the first."""

_HISTORY, _MADE_FROM = "history", "made_from"
_log = logging.getLogger(__name__)


def save_epoch(
    artifact: Artifact,
    report: EpochReport,
    history: History,
    *,
    folder: str = CHECKPOINTS,
    keep: Collection[int] = (),
) -> None:
    """Save the checkpoint after a reported epoch, with the metrics of all epochs so far.

    The previous one in `folder` is kept too, and those of the epochs in `keep`; others are deleted.
    """
    state = {**report.checkpoint(), _HISTORY: json.dumps(history)}
    _write(artifact, _of_epoch(report.epoch, folder), state)
    kept = [_of_epoch(epoch, folder) for epoch in keep]
    for outdated in _saved(artifact, folder)[:-KEPT]:
        if outdated not in kept:
            artifact.delete_part(outdated)


def checkpoint_of_epoch(artifact: Artifact, epoch: int) -> Checkpoint:
    """The checkpoint after an epoch; MuvaError if it was not kept or is damaged."""
    folder = _of_epoch(epoch)
    if folder not in _saved(artifact):
        kept = ", ".join(str(int(Path(one).name)) for one in _saved(artifact))
        raise MuvaError(
            f"{artifact.uri}: no checkpoint of epoch {epoch} is kept, only of {kept or 'none'}. "
            "`--keep-every N` keeps the checkpoint of every N-th epoch during a training"
        )
    return _read(artifact, folder)


def latest_checkpoint(
    artifact: Artifact, *, folder: str = CHECKPOINTS
) -> tuple[Checkpoint | None, History]:
    """The newest complete checkpoint and the history up to it; (None, empty) if there is none."""
    for saved in reversed(_saved(artifact, folder)):
        try:
            state = _read(artifact, saved)
            history = json.loads(str(state.pop(_HISTORY)))
        except (MuvaError, KeyError, ValueError) as error:
            _log.warning("%s: skipping the damaged checkpoint %s: %s", artifact.uri, saved, error)
        else:
            return state, history
    return None, []


def save_diverged(artifact: Artifact, error: DivergedError, *, made_from: object) -> NotFiniteError:
    """Save the checkpoint before a diverged step; the error, extended by how to repeat the step.

    `made_from`: JSON from which the same model can be built again.
    """
    _write(artifact, DIVERGED, {**error.checkpoint(), _MADE_FROM: json.dumps(made_from)})
    return NotFiniteError(
        f"{error} The checkpoint before the step is kept in {artifact.uri}/{DIVERGED}; "
        f"`python -m workflows.verbs.diverged {artifact.uri}` repeats the step, and --set tries "
        "other settings"
    )


def diverged_checkpoint(artifact: Artifact) -> tuple[Checkpoint, Any]:
    """The checkpoint before a diverged step and what it was made from; MuvaError without one."""
    if not list(artifact.store.list(artifact.key(DIVERGED) + "/")):
        raise MuvaError(
            f"{artifact.uri}: holds no checkpoint of a diverged step. Expected the address of the "
            "prompts or the model that the error of such a training names"
        )
    state = _read(artifact, DIVERGED)
    return state, json.loads(str(state.pop(_MADE_FROM)))


def delete_checkpoints(artifact: Artifact, *, keep: Collection[int] = ()) -> None:
    """Delete all checkpoints of a finished artifact, except those of the epochs in `keep`."""
    for folder in _saved(artifact):
        if folder not in map(_of_epoch, keep):
            artifact.delete_part(folder)
    artifact.delete_part(DIVERGED)


def _read(artifact: Artifact, folder: str) -> dict[str, Tensor | int | float | str]:
    with local_copy(artifact, folder) as copy:
        return dict(load_checkpoint(copy))


def _of_epoch(epoch: int, folder: str = CHECKPOINTS) -> str:
    return f"{folder}/{epoch:05d}"


def _write(artifact: Artifact, folder: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a folder; the file of metrics is written last and makes it complete."""
    with tempfile.TemporaryDirectory() as copy:
        try:
            save_checkpoint(Path(copy), checkpoint)
        except OSError as error:
            raise MuvaError(
                f"{artifact.uri}: {folder} could not be written to {copy} first: {error}. The "
                "earlier checkpoints are intact. Free some space there, or name another folder "
                "with TMPDIR, and repeat the command"
            ) from error
        files = sorted(Path(copy).iterdir(), key=lambda file: file.name == VALUES)
        for file in files:
            artifact.store.write(artifact.key(folder, file.name), file.read_bytes())


def _saved(artifact: Artifact, folder: str = CHECKPOINTS) -> list[str]:
    prefix = artifact.key(folder) + "/"
    names = {key.removeprefix(prefix).split("/")[0] for key in artifact.store.list(prefix)}
    return [f"{folder}/{name}" for name in sorted(names)]
