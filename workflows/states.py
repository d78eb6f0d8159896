"""Training states beside the artifact that they lead to: saved as training goes on, read on resume.

The newest whole one counts; a damaged one is passed over with a warning for the one before.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from muva.data.artifacts import Artifact
from muva.errors import MuvaError
from muva.models import local_copy
from muva.training.checkpoints import VALUES, load_checkpoint, save_checkpoint
from muva.training.report import EpochReport, State

STATES = "states"
KEPT = 2
"""The newest one, and one to fall back to."""

History = list[dict[str, Any]]
"""Metrics per epoch, from the first."""

_HISTORY = "history"
_log = logging.getLogger(__name__)


def save_state(artifact: Artifact, report: EpochReport, history: History) -> None:
    """Saves the state behind a reported epoch, with the metrics of all epochs so far."""
    folder = f"{STATES}/{report.epoch:05d}"
    with tempfile.TemporaryDirectory() as copy:
        save_checkpoint(Path(copy), {**report.state(), _HISTORY: json.dumps(history)})
        files = sorted(Path(copy).iterdir(), key=lambda file: file.name == VALUES)
        for file in files:
            artifact.store.write(artifact.key(folder, file.name), file.read_bytes())
    for outdated in _saved(artifact)[:-KEPT]:
        _delete(artifact, outdated)


def newest_state(artifact: Artifact) -> tuple[State | None, History]:
    """The newest whole state and the history up to it; None and nothing when there is none."""
    for folder in reversed(_saved(artifact)):
        try:
            with local_copy(artifact, folder) as copy:
                state = dict(load_checkpoint(copy))
            history = json.loads(str(state.pop(_HISTORY)))
        except (MuvaError, KeyError, ValueError) as error:
            _log.warning("%s: %s is passed over: %s", artifact.uri, folder, error)
        else:
            return state, history
    return None, []


def delete_states(artifact: Artifact) -> None:
    """Removes all saved states: the artifact is made."""
    _delete(artifact, STATES)


def _saved(artifact: Artifact) -> list[str]:
    prefix = artifact.key(STATES) + "/"
    names = {key.removeprefix(prefix).split("/")[0] for key in artifact.store.list(prefix)}
    return [f"{STATES}/{name}" for name in sorted(names)]


def _delete(artifact: Artifact, folder: str) -> None:
    for key in list(artifact.store.list(artifact.key(folder) + "/")):
        artifact.store.delete(key)
