"""Training states beside the artifact that they lead to: saved as training goes on, read on resume.

The newest whole one counts; a damaged one is passed over with a warning for the one before.
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

STATES = "states"
DIVERGED = "diverged"
"""Beside the states: the one before a step whose loss was not finite."""
KEPT = 2
"""The newest one, and one to fall back to."""

History = list[dict[str, Any]]
"""Metrics per epoch, from the first."""

_HISTORY, _MADE_FROM = "history", "made_from"
_log = logging.getLogger(__name__)


def save_state(
    artifact: Artifact,
    report: EpochReport,
    history: History,
    *,
    folder: str = STATES,
    keep: Collection[int] = (),
) -> None:
    """Saves the state behind a reported epoch, with the metrics of all epochs so far.

    Of the others in `folder` the one before stays, and those of the epochs to `keep`.
    """
    state = {**report.checkpoint(), _HISTORY: json.dumps(history)}
    _write(artifact, _of_epoch(report.epoch, folder), state)
    kept = [_of_epoch(epoch, folder) for epoch in keep]
    for outdated in _saved(artifact, folder)[:-KEPT]:
        if outdated not in kept:
            artifact.delete_part(outdated)


def saved_state(artifact: Artifact, epoch: int) -> Checkpoint:
    """The state behind an epoch; MuvaError where it was not kept, or is damaged."""
    folder = _of_epoch(epoch)
    if folder not in _saved(artifact):
        kept = ", ".join(str(int(Path(one).name)) for one in _saved(artifact))
        raise MuvaError(
            f"{artifact.uri}: no state of epoch {epoch} is kept, but of {kept or 'none'}. "
            f"`--keep-every N` keeps those of every N-th epoch as a training goes on"
        )
    return _read(artifact, folder)


def newest_state(artifact: Artifact, *, folder: str = STATES) -> tuple[Checkpoint | None, History]:
    """The newest whole state and the history up to it; None and nothing when there is none."""
    for saved in reversed(_saved(artifact, folder)):
        try:
            state = _read(artifact, saved)
            history = json.loads(str(state.pop(_HISTORY)))
        except (MuvaError, KeyError, ValueError) as error:
            _log.warning("%s: %s is passed over: %s", artifact.uri, saved, error)
        else:
            return state, history
    return None, []


def save_diverged(artifact: Artifact, error: DivergedError, *, made_from: object) -> NotFiniteError:
    """Keeps the state before a diverged step; the error with where it lies and what repeats it.

    `made_from`: what building the same model again takes, as JSON.
    """
    _write(artifact, DIVERGED, {**error.checkpoint(), _MADE_FROM: json.dumps(made_from)})
    return NotFiniteError(
        f"{error} The state before the step is kept in {artifact.uri}/{DIVERGED}; "
        f"`python -m workflows.verbs.diverged {artifact.uri}` repeats it, --set tries others"
    )


def diverged_state(artifact: Artifact) -> tuple[Checkpoint, Any]:
    """The state before a diverged step, and what it was made from; MuvaError when there is none."""
    if not list(artifact.store.list(artifact.key(DIVERGED) + "/")):
        raise MuvaError(
            f"{artifact.uri}: there is no state of a step that diverged; expected the address of "
            f"the prompts or the model in the error of such a training"
        )
    state = _read(artifact, DIVERGED)
    return state, json.loads(str(state.pop(_MADE_FROM)))


def delete_states(artifact: Artifact, *, keep: Collection[int] = ()) -> None:
    """Removes the saved states but those of the epochs to `keep`: the artifact is made."""
    for folder in _saved(artifact):
        if folder not in map(_of_epoch, keep):
            artifact.delete_part(folder)
    artifact.delete_part(DIVERGED)


def _read(artifact: Artifact, folder: str) -> dict[str, Tensor | int | float | str]:
    with local_copy(artifact, folder) as copy:
        return dict(load_checkpoint(copy))


def _of_epoch(epoch: int, folder: str = STATES) -> str:
    return f"{folder}/{epoch:05d}"


def _write(artifact: Artifact, folder: str, state: Checkpoint) -> None:
    """A state under a folder of keys; the values, written last, make it whole."""
    with tempfile.TemporaryDirectory() as copy:
        try:
            save_checkpoint(Path(copy), state)
        except OSError as error:
            raise MuvaError(
                f"{artifact.uri}: {folder} could not be written aside in {copy}: {error}. The "
                f"states before it are whole. Free some space there, or name another folder with "
                f"TMPDIR, then start the same command again"
            ) from error
        files = sorted(Path(copy).iterdir(), key=lambda file: file.name == VALUES)
        for file in files:
            artifact.store.write(artifact.key(folder, file.name), file.read_bytes())


def _saved(artifact: Artifact, folder: str = STATES) -> list[str]:
    prefix = artifact.key(folder) + "/"
    names = {key.removeprefix(prefix).split("/")[0] for key in artifact.store.list(prefix)}
    return [f"{folder}/{name}" for name in sorted(names)]
