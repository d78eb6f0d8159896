"""Training checkpoints as safetensors and JSON: no pickles, and a checksum verified on loading."""

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
"""Configuration sections or single settings, by name."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into a folder. The JSON file is written last and marks it as complete."""
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
    partial = folder / f"{VALUES}.part"
    partial.write_text(json.dumps(description, indent=2) + "\n")
    partial.replace(folder / VALUES)


def recorded_settings(settings: Settings) -> dict[str, str]:
    """The entry of a checkpoint that records the settings of its training."""
    return {SETTINGS: json.dumps(_plain(settings))}


def check_settings(checkpoint: Checkpoint, settings: Settings) -> None:
    """Compare the settings that a checkpoint records with those of this training.

    A checkpoint that records no settings is accepted. A setting that it does not record is newer
    than the checkpoint, and had its default.

    Raises:
        MuvaError: the checkpoint was trained with different settings; the message names them.
    """
    if SETTINGS not in checkpoint:
        return
    defaults = {
        name: type(section)() for name, section in settings.items() if isinstance(section, Section)
    }
    theirs = {**dict(flat(_plain(defaults))), **dict(flat(json.loads(str(checkpoint[SETTINGS]))))}
    changed = [
        f"{name} is {value}, but {theirs[name]} in the checkpoint"
        for name, value in flat(_plain(settings))
        if theirs.get(name, value) != value
    ]
    if changed:
        raise MuvaError(
            f"This checkpoint was trained with different settings: {'; '.join(changed)}. Use the "
            f"same settings to resume from it, or start a new training without it"
        )


def _plain(settings: Settings) -> dict[str, Any]:
    return {
        name: value.model_dump(mode="json") if isinstance(value, Section) else value
        for name, value in settings.items()
    }


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        MuvaError: the checkpoint is incomplete, damaged or in an unsupported format.
    """
    try:
        description = json.loads((folder / VALUES).read_text())
        stored = (folder / TENSORS).read_bytes()
        version, expected = description["format_version"], description["sha256"]
        values = description["values"]
    except FileNotFoundError as error:
        raise MuvaError(
            f"checkpoint {folder}: {Path(error.filename).name} is missing, so saving it was "
            f"interrupted; resume from an earlier checkpoint"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise MuvaError(f"checkpoint {folder}: {VALUES} is damaged ({error!r})") from error
    if version != FORMAT_VERSION:
        raise MuvaError(
            f"checkpoint {folder} has format version {version}, but this program reads version "
            f"{FORMAT_VERSION}: resume with the release that wrote it, or train from the start"
        )
    if hashlib.sha256(stored).hexdigest() != expected:
        raise MuvaError(
            f"checkpoint {folder}: {TENSORS} is damaged (its SHA-256 differs from the one in "
            f"{VALUES}); resume from an earlier checkpoint"
        )
    try:
        return {**values, **load(stored)}
    except SafetensorError as error:
        raise MuvaError(f"checkpoint {folder}: {TENSORS} is damaged ({error})") from error
