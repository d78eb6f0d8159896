"""Checkpoints: a training state as safetensors and JSON, without pickles, verified when read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from muva.config import Section, flat
from muva.errors import MuvaError
from muva.training.report import Checkpoint

FORMAT_VERSION = 1
TENSORS, VALUES = "state.safetensors", "state.json"
SETTINGS = "settings"
Settings = Mapping[str, Section | int]
"""Section or single setting by name."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a state into a folder; the JSON, written last, makes it whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: v.contiguous() for key, v in checkpoint.items() if isinstance(v, Tensor)}
    values = {key: v for key, v in checkpoint.items() if not isinstance(v, Tensor)}
    stored = save(tensors)
    description = {
        "format_version": FORMAT_VERSION,
        "sha256": hashlib.sha256(stored).hexdigest(),
        "values": values,
    }
    (folder / VALUES).unlink(missing_ok=True)
    (folder / TENSORS).write_bytes(stored)
    beside = folder / f"{VALUES}.part"
    beside.write_text(json.dumps(description, indent=2) + "\n")
    beside.replace(folder / VALUES)


def recorded_settings(settings: Settings) -> dict[str, str]:
    """What a state says of the settings that it was trained with."""
    return {SETTINGS: json.dumps(_plain(settings))}


def check_settings(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raises MuvaError, which names them, where a state was trained with other settings.

    A state that tells none is taken as it is.
    """
    if SETTINGS not in checkpoint:
        return
    theirs = dict(flat(json.loads(str(checkpoint[SETTINGS]))))
    changed = [
        f"{name} is {value}, of the checkpoint {theirs[name]}"
        for name, value in flat(_plain(settings))
        if theirs.get(name, value) != value
    ]
    if changed:
        raise MuvaError(
            f"this checkpoint is of a training with other settings: {'; '.join(changed)}. Set "
            f"them alike to go on from it, or start without it"
        )


def _plain(settings: Settings) -> dict[str, Any]:
    return {
        name: value.model_dump(mode="json") if isinstance(value, Section) else value
        for name, value in settings.items()
    }


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a state back; raises MuvaError when it is unfinished, damaged or of another format."""
    try:
        description = json.loads((folder / VALUES).read_text())
        stored = (folder / TENSORS).read_bytes()
        version, expected = description["format_version"], description["sha256"]
        values = description["values"]
    except FileNotFoundError as error:
        raise MuvaError(
            f"checkpoint {folder}: no {Path(error.filename).name}, so it was never finished; "
            f"resume from an earlier one"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MuvaError(f"checkpoint {folder}: {VALUES} is damaged ({error!r})") from error
    if version != FORMAT_VERSION:
        raise MuvaError(
            f"checkpoint {folder} has the format {version}, this program reads {FORMAT_VERSION}: "
            f"resume it with the version that wrote it, or start again"
        )
    if hashlib.sha256(stored).hexdigest() != expected:
        raise MuvaError(
            f"checkpoint {folder}: {TENSORS} is damaged (its SHA-256 is not that of {VALUES}); "
            f"resume from an earlier one"
        )
    try:
        return {**values, **load(stored)}
    except SafetensorError as error:
        raise MuvaError(f"checkpoint {folder}: {TENSORS} is damaged ({error})") from error
