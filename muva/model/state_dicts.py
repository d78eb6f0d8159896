"""Reads state dicts from files without executing any code that a file contains."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from muva.errors import MuvaError

CONTAINERS = ("state_dict", "model", "model_state_dict", "net")
"""Keys under which training programs store a model's state dict in a checkpoint."""

_WRAPPERS = re.compile(r"(module\.|_orig_mod\.)+")
"""Prefixes that DataParallel and torch.compile add to every name."""

_FORBIDDEN = re.compile(r"GLOBAL (\S+)")
"""Matches the forbidden global in the error of torch.load(weights_only=True)."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, a torch checkpoint (no pickled code) or a TorchScript.

    A checkpoint may store its state dict under one of `CONTAINERS`. The prefixes that DataParallel
    and torch.compile add are removed from the names.

    Raises:
        MuvaError: the file is missing, incomplete, in another format, or contains anything but
            tensors and plain containers.
    """
    try:
        if path.suffix == ".safetensors":
            stored = load_file(path)
        elif _is_torchscript(path):
            stored = dict(torch.jit.load(path, map_location="cpu").state_dict())
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MuvaError(f"{path}: expected a weights file, found none") from error
    except pickle.UnpicklingError as error:
        raise _unpicklable(path, error) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise _unreadable(path, (str(error).splitlines() or [type(error).__name__])[0]) from error
    weights = _weights_in(stored)
    if weights is None:
        found = ", ".join(map(str, list(stored)[:6])) if isinstance(stored, Mapping) else "no dict"
        raise MuvaError(
            f"{path}: expected a state dict of tensors, alone or under one of "
            f"{', '.join(CONTAINERS)}; found {found or 'an empty dict'}"
        )
    return {
        _WRAPPERS.sub("", str(name), count=1): torch.as_tensor(value)
        for name, value in weights.items()
    }


def _weights_in(stored: Any) -> Mapping[str, Tensor | int | float] | None:
    """The state dict in a loaded file, where OpenAI's sizes may be plain numbers."""
    if not isinstance(stored, Mapping) or not stored:
        return None
    are_tensors = [isinstance(value, Tensor) for value in stored.values()]
    if any(are_tensors) and all(
        isinstance(value, Tensor | int | float) for value in stored.values()
    ):
        return stored
    for name in CONTAINERS:
        inner = stored.get(name)
        if isinstance(inner, Mapping) and inner and _weights_in(inner) is inner:
            return inner
    return None


def _unpicklable(path: Path, error: pickle.UnpicklingError) -> MuvaError:
    named = _FORBIDDEN.search(str(error))
    if named is None:
        return _unreadable(path, "not a pickle of tensors")  # torch's message advises to run it
    return MuvaError(
        f"{path}: its pickle refers to {named[1].rstrip('.')}, which weights do not need and which "
        "could run code, so it was not loaded. Expected a torch file with tensors in plain "
        "containers. If you trust the file, extract the tensors: "
        "torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
    )


def _unreadable(path: Path, reason: str) -> MuvaError:
    return MuvaError(
        f"{path}: cannot be read as weights ({reason}): expected safetensors, a torch file of "
        "tensors, or TorchScript. Check that the file is complete"
    )


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())
