"""Pushing a bundle to the Hugging Face Hub: weights, configuration and card, in one commit.

Files that the hub has already are neither uploaded nor committed again, so a push can be repeated.
A card that somebody has edited on the hub stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.errors import MuvaError, SettingsError
from muva.hub.address import DEFAULT_BRANCH, SCHEME, HubAddress, parse_hub_address
from muva.hub.card import CARD, Results, is_unedited, model_card
from muva.hub.failures import refusal, unavailable_reason
from muva.model.bundle_description import DESCRIPTION, HUB, WEIGHTS, parse_description

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """A bundle on the hub."""

    uri: str
    """`hf://ORG/NAME@COMMIT`, which `muva.load` opens."""
    url: str
    """The page of the commit."""
    commit: str
    changed: bool
    """False if the hub had this content already: there is no new commit."""
    card_kept: bool
    """Whether a card that somebody has edited on the hub was left as it is."""


def push_bundle(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    licence: str | None = None,
    results: Results | None = None,
) -> Pushed:
    """Push the bundle in a folder to a repository, which is created if there is none.

    Args:
        repository: ORG/NAME, or `hf://ORG/NAME`.
        private: create the repository as private, and refuse to push to a public one; None: as the
            hub creates it by default.
        revision: the branch to push to, created if there is none. [main]
        commit_message: its first line.
        token: with write access; by default HF_TOKEN or that of `hf auth login`.
        licence: see `model_card`.
        results: see `model_card`.

    Raises:
        SettingsError: the address is none, or names a commit.
        MuvaError: the folder holds no bundle, or the hub refuses or is unavailable.
    """
    from httpx2 import HTTPError  # huggingface_hub does not wrap the errors of its client
    from huggingface_hub import HfApi

    address = parse_hub_address(repository, revision=revision)
    if address.is_commit:
        raise SettingsError(f"{address.uri}: expected a branch to push to, found a commit")
    description = _description_to_push(folder)
    api = HfApi(token=token, library_name="muva")
    try:
        before = _prepared(api, address, private=private)
        existing = _existing_card(api, address)
        keeps = existing is not None and not is_unedited(existing)
        files: dict[str, bytes | Path] = {
            WEIGHTS: folder / WEIGHTS,
            DESCRIPTION: (json.dumps(description, indent=2) + "\n").encode(),
        }
        if not keeps:
            card = model_card(
                description,
                f"{SCHEME}{address.repository}",
                licence=licence,
                results=results,
            )
            files[CARD] = card.encode()
        commit, url = _committed(api, address, files, commit_message)
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        if reason := unavailable_reason(error):
            raise MuvaError(
                f"{address.uri}: {reason}, so the model was not pushed. Run the same command again "
                "later: what the hub has received is not uploaded again"
            ) from error
        raise refusal(error, address, writing=True) from error
    return Pushed(
        uri=address.at(commit).uri,
        url=url,
        commit=commit,
        changed=commit != before,
        card_kept=keeps,
    )


def _description_to_push(folder: Path) -> Mapping[str, Any]:
    """A bundle's description without what this machine's cache says about where it comes from.

    Raises:
        MuvaError: the folder holds no bundle, or a damaged one.
    """
    missing = [name for name in (DESCRIPTION, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise MuvaError(f"{folder} is not a model bundle: expected {' and '.join(missing)} in it")
    description = parse_description((folder / DESCRIPTION).read_bytes(), where=f"{folder}")
    with (folder / WEIGHTS).open("rb") as weights:
        if hashlib.file_digest(weights, "sha256").hexdigest() != description["sha256"]:
            raise MuvaError(
                f"model bundle {folder}: {WEIGHTS} is damaged (its SHA-256 differs from the one in "
                f"{DESCRIPTION}); nothing was pushed. Copy the bundle again"
            )
    metadata = {key: value for key, value in description["metadata"].items() if key != HUB}
    return {**description, "metadata": metadata}


def _prepared(api: HfApi, address: HubAddress, *, private: bool | None) -> str | None:
    """Create the repository and the branch where they are missing; the branch's present commit."""
    api.create_repo(address.repository, private=private, exist_ok=True)
    info = api.model_info(address.repository)
    if private and not info.private:
        raise MuvaError(
            f"{address.uri}: the repository exists and is public, and a private one was requested. "
            "Make it private on the hub, or leave out `private`"
        )
    if address.revision == DEFAULT_BRANCH:
        return info.sha
    api.create_branch(address.repository, branch=address.revision, exist_ok=True)
    return api.model_info(address.repository, revision=address.revision).sha


def _existing_card(api: HfApi, address: HubAddress) -> str | None:
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            file = api.hf_hub_download(
                address.repository, CARD, revision=address.revision, local_dir=folder
            )
        except RemoteEntryNotFoundError:
            return None
        return Path(file).read_text(encoding="utf-8")


def _committed(
    api: HfApi, address: HubAddress, files: Mapping[str, bytes | Path], message: str | None
) -> tuple[str, str]:
    """The commit with these files, a new one only if they differ from the last, and its page."""
    from huggingface_hub import CommitOperationAdd

    info = api.create_commit(
        address.repository,
        [CommitOperationAdd(path, content) for path, content in files.items()],
        commit_message=message or "Push a model with muva",
        revision=address.revision,
    )
    return info.oid, info.commit_url
