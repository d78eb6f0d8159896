"""Weights of experts: a local folder or a hub name, safetensors alone, never code of a hub's.

What an answer depends on is pinned before anything is loaded: a hub's name is resolved to the
commit that it means now, a folder to a hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muva.errors import MuvaError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_READ = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Files that a model or its processor is read from."""

CONTENT = "sha256:"
"""Before the hash of a folder's files."""

SHIPPED = "shipped:"
"""Before the name of weights that come with muva."""

_HERE = Path(__file__).parents[1]
_METADATA = "__metadata__"
"""The one entry of a safetensors header that is no tensor."""

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Names of torch's, which is imported where weights are loaded: choosing an expert needs none."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where an expert's weights are, and which state of them is meant."""

    place: str
    """A folder, a hub's ORG/NAME, or `shipped:NAME`, which is a folder wherever muva is."""
    revision: str
    """A hub's commit, or `sha256:` of a folder's files; see `pinned`."""

    @property
    def folder(self) -> Path | None:
        """The local folder, None on a hub."""
        return _folder(self.place)

    @property
    def source(self) -> str:
        """What `from_pretrained` is told of the place."""
        return str(self.folder or self.place)

    @property
    def hub(self) -> dict[str, Any]:
        """What `from_pretrained` is told of the revision."""
        return {} if self.folder else {"revision": self.revision}

    def check_here(self) -> None:
        """MuvaError where a folder on this machine is not what was pinned, on another perhaps."""
        if not self.revision.startswith(CONTENT):
            return
        folder = self.folder
        found = f"{CONTENT}{_content(folder)}" if folder else "no such folder"
        if found != self.revision:
            raise MuvaError(
                f"expert's weights {self.place} on {platform.node()}: expected {self.revision}, "
                f"found {found}. Put the same files there on each node, or on a shared disk"
            )


def pinned(place: str, revision: str = "") -> Weights:
    """The weights at a place as they are now.

    A hub is asked for the commit unless `revision` is one; without network the newest copy in the
    local cache counts. Raises MuvaError where nothing is.
    """
    folder = _folder(place)
    if folder is not None:
        if revision:
            raise MuvaError(
                f"expert's weights {place}: a folder has no revisions; expected none, found "
                f"{revision}"
            )
        shipped = place.startswith(SHIPPED)
        return Weights(
            place=place if shipped else str(folder.resolve()),
            revision=f"{CONTENT}{_content(folder)}",
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise MuvaError(
            f"expert's weights {place}: expected a folder that is there, or a hub's ORG/NAME"
        )
    if _COMMIT.fullmatch(revision):
        return Weights(place=place, revision=revision)
    return Weights(place=place, revision=_commit(place, revision or "main"))


def _folder(place: str) -> Path | None:
    shipped = place.startswith(SHIPPED)
    folder = _HERE / place.removeprefix(SHIPPED) if shipped else Path(place).expanduser()
    return folder if folder.is_dir() else None


def parameters_in(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold: their headers alone are read.

    A damaged header counts as nothing: loading says what is wrong with it.
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
    """A model and a processor of these transformers classes; on a GPU where there is one.

    Raises MuvaError for weights of another architecture, incomplete ones, and none.
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
        config = AutoConfig.from_pretrained(weights.source, trust_remote_code=False, **weights.hub)
        if config.model_type != expected:
            raise MuvaError(
                f"expert's weights {weights.place}: expected the architecture {expected}, found "
                f"{config.model_type}"
            )
        model, loading = kind.from_pretrained(
            weights.source,
            config=config,
            dtype=getattr(torch, DTYPES[precision]),
            use_safetensors=True,
            output_loading_info=True,
            **weights.hub,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise MuvaError(
            f"expert's weights {weights.place} cannot be loaded ({str(error).splitlines()[0]}): "
            "expected a folder or a hub's model with config.json and model.safetensors"
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise MuvaError(
            f"expert's weights {weights.place}: {len(missing)} tensors of {expected} are missing, "
            f"for example {missing[0]}"
        )
    return model


def _processor(kind: Any, weights: Weights) -> Any:
    try:
        return kind.from_pretrained(weights.source, **weights.hub)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MuvaError(
            f"expert's weights {weights.place}: their processor cannot be loaded "
            f"({str(error).splitlines()[0]}): expected its JSON files beside the weights"
        ) from error


def _commit(place: str, revision: str) -> str:
    from httpx2 import HTTPError  # the hub's own client, whose errors it lets through
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        commit = HfApi().model_info(place, revision=revision, timeout=20).sha
        if commit:
            return commit
    except HfHubHTTPError as error:
        raise MuvaError(
            f"expert's weights {place}: the hub has none at {revision} for you ({error}). Is the "
            "name right, and does HF_TOKEN give access?"
        ) from error
    except (HTTPError, OSError, ValueError) as error:
        reason = error
    else:
        reason = ValueError("the hub names no commit")
    try:
        return Path(snapshot_download(place, revision=revision, local_files_only=True)).name
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise MuvaError(
            f"expert's weights {place}: the hub does not answer ({str(reason).splitlines()[0]}), "
            "and nothing is in the local cache. Download them where there is a network and name "
            "the folder with --set grounding.checkpoint=FOLDER"
        ) from reason


def _content(folder: Path) -> str:
    """Hash of all that is read from a folder."""
    files = sorted({file for pattern in _READ for file in folder.glob(pattern)})
    if not any(file.suffix == ".safetensors" for file in files):
        raise MuvaError(
            f"expert's weights {folder}: expected safetensors in this folder, found "
            f"{', '.join(sorted(file.name for file in folder.iterdir())[:6]) or 'nothing'}"
        )
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            whole.update(
                f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}".encode()
            )
    return whole.hexdigest()[:40]
