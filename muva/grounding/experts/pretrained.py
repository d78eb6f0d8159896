"""Weights of experts from a local folder or a hub: only safetensors, and never code from a hub.

Before anything is loaded, the exact version is pinned: the name of a hub model is resolved to its
current commit, and a folder is identified by a hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import re
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from muva.errors import MuvaError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""The files that a model and its processor are loaded from."""

CONTENT_PREFIX = "sha256:"
"""Marks a revision that is the hash of a folder's files."""

SHIPPED_PREFIX = "shipped:"
"""Marks the location of weights that are part of muva."""

_PACKAGE = Path(__file__).parents[1]
_METADATA = "__metadata__"
"""The only entry of a safetensors header that is not a tensor."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of torch's, which is imported where weights are loaded: choosing an expert needs none."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where the weights of an expert are, and their exact version."""

    location: str
    """A folder, a hub's ORG/NAME, or `shipped:NAME` for a folder of the installed package."""
    revision: str
    """A commit of the hub, or `sha256:` and a hash of the folder's files; see `pin`."""

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a hub model."""
        return _folder(self.location)

    @property
    def pretrained_name(self) -> str:
        """The first argument of `from_pretrained`."""
        return str(self.folder or self.location)

    @property
    def hub_options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` that select the revision."""
        return {} if self.folder else {"revision": self.revision}

    def verify(self) -> None:
        """Raise MuvaError if a folder on this machine differs from the pinned version."""
        if not self.revision.startswith(CONTENT_PREFIX):
            return
        folder = self.folder
        found = f"{CONTENT_PREFIX}{_content_hash(folder)}" if folder else "no such folder"
        if found != self.revision:
            raise MuvaError(
                f"expert's weights {self.location} on {platform.node()}: expected {self.revision}, "
                f"found {found}. Put the same files there on every node, or use a shared disk"
            )


def pin(location: str, revision: str = "") -> Weights:
    """The weights at a location, pinned to their current version.

    The hub is queried for the commit unless `revision` is one already; if it does not say it, the
    newest copy in the local cache is used. Raises MuvaError if there is none.
    """
    folder = _folder(location)
    if folder is not None:
        if revision:
            raise MuvaError(
                f"expert's weights {location}: expected no revision for a folder, found {revision}"
            )
        shipped = location.startswith(SHIPPED_PREFIX)
        return Weights(
            location=location if shipped else str(folder.resolve()),
            revision=f"{CONTENT_PREFIX}{_content_hash(folder)}",
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", location):
        raise MuvaError(
            f"expert's weights {location}: expected an existing folder or a hub's ORG/NAME"
        )
    if _COMMIT.fullmatch(revision):
        return Weights(location=location, revision=revision)
    return Weights(location=location, revision=_commit(location, revision or "main"))


def _folder(location: str) -> Path | None:
    shipped = location.startswith(SHIPPED_PREFIX)
    folder = (
        _PACKAGE / location.removeprefix(SHIPPED_PREFIX) if shipped else Path(location).expanduser()
    )
    return folder if folder.is_dir() else None


def parameters_in(folder: Path) -> int:
    """Number of parameters in the safetensors files of a folder, from their headers.

    Files with a damaged header are skipped; loading reports what is wrong with them.
    """
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as content:
            try:
                header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
                shapes = [entry["shape"] for name, entry in header.items() if name != _METADATA]
            except (ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError):
                continue
        total += sum(math.prod(shape) for shape in shapes)
    return total


def load_pretrained(
    model: Any, processor: Any, weights: Weights, *, precision: str
) -> tuple[Any, Any]:
    """A model and a processor of these transformers classes, on a GPU if there is one.

    Raises MuvaError if the weights are missing, incomplete, or of another architecture.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = _model(model, weights, precision=precision)
    return loaded.eval().to(device), _processor(processor, weights)


def _model(kind: Any, weights: Weights, *, precision: str) -> Any:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig

    expected = kind.config_class.model_type
    try:
        config = AutoConfig.from_pretrained(
            weights.pretrained_name, trust_remote_code=False, **weights.hub_options
        )
        if config.model_type != expected:
            raise MuvaError(
                f"expert's weights {weights.location}: expected the architecture {expected}, found "
                f"{config.model_type}"
            )
        model, loading = kind.from_pretrained(
            weights.pretrained_name,
            config=config,
            dtype=getattr(torch, DTYPES[precision]),
            use_safetensors=True,
            output_loading_info=True,
            **weights.hub_options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise MuvaError(
            f"expert's weights {weights.location} cannot be loaded ({str(error).splitlines()[0]}): "
            "expected a folder or a hub's model with config.json and model.safetensors"
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise MuvaError(
            f"expert's weights {weights.location}: {len(missing)} tensors of {expected} are "
            f"missing, for example {missing[0]}"
        )
    return model


def _processor(kind: Any, weights: Weights) -> Any:
    try:
        return kind.from_pretrained(weights.pretrained_name, **weights.hub_options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MuvaError(
            f"expert's weights {weights.location}: the processor cannot be loaded "
            f"({str(error).splitlines()[0]}). Expected its JSON files beside the weights"
        ) from error


def _commit(location: str, revision: str) -> str:
    """The current commit of a hub's model; the cached one if the hub does not say it now.

    Only a 404 says that the hub has no such model. Busy hubs (429, 503), expired tokens (401) and
    broken connections say nothing about it.
    """
    from httpx2 import HTTPError  # used by huggingface_hub, which does not wrap its errors
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    status = None
    try:
        commit = HfApi().model_info(location, revision=revision, timeout=20).sha
        if commit:
            return commit
        reason: Exception = ValueError("the hub returned no commit")
    except HfHubHTTPError as error:
        reason, status = error, error.response.status_code
        if status == HTTPStatus.NOT_FOUND:
            raise MuvaError(
                f"expert's weights {location}: the hub has no such model at revision {revision} "
                f"({_first_line(error)}). Is the name correct?"
            ) from error
    except (HTTPError, OSError, ValueError) as error:
        reason = error
    problem = "does not respond" if status is None else f"responds with status {status}"
    try:
        cached = Path(snapshot_download(location, revision=revision, local_files_only=True)).name
    except (LocalEntryNotFoundError, OSError, ValueError):
        access = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
        remedy = (
            "Is the name correct, and does HF_TOKEN grant access?"
            if access
            else "Try again later, or download them on a machine with network access and use --set "
            "grounding.checkpoint=FOLDER"
        )
        raise MuvaError(
            f"expert's weights {location}: the hub {problem} ({_first_line(reason)}), and the "
            f"local cache is empty. {remedy}"
        ) from reason
    logging.getLogger(__name__).warning(
        "expert's weights %s: the hub %s (%s); the cached commit %s is used.",
        location,
        problem,
        _first_line(reason),
        cached,
    )
    return cached


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _content_hash(folder: Path) -> str:
    """Hash of all files of a folder that are read."""
    files = sorted({file for pattern in _FILE_PATTERNS for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise MuvaError(
            f"expert's weights {folder}: expected safetensors in this folder, found "
            f"{', '.join(sorted(file.name for file in folder.iterdir())[:6]) or 'nothing'}"
        )
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(
                f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}".encode()
            )
    return digest.hexdigest()[:40]
