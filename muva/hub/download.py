"""Bundles from the Hugging Face Hub, in its own cache, pinned to a commit.

Only the two files of a bundle are downloaded, never a pickle. huggingface_hub keeps them under
`HF_HUB_CACHE`, where other programs find them too. A branch or a tag is looked up each time; a
commit that is in the cache needs no network.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from muva.errors import MuvaError
from muva.hub.address import HubAddress
from muva.hub.failures import refusal, unavailable_reason
from muva.model.bundle_description import DESCRIPTION, WEIGHTS, parse_description

FILES = (DESCRIPTION, WEIGHTS)
TIMEOUT_S = 20.0
"""How long the hub may take to say which commit a revision is."""
_NAMED = 8
"""So many of a repository's files are named in an error."""


@dataclass(frozen=True, kw_only=True)
class HubSnapshot:
    """A bundle in the local cache."""

    address: HubAddress
    """As requested."""
    commit: str
    folder: Path

    @property
    def uri(self) -> str:
        """The address of exactly this commit."""
        return self.address.at(self.commit).uri

    @property
    def provenance(self) -> dict[str, str]:
        """What a bundle's metadata says about where it comes from, under the key `hub`."""
        return {
            "repository": self.address.repository,
            "revision": self.address.revision,
            "commit": self.commit,
        }


def download_bundle(address: HubAddress, *, cache: Path | None = None) -> HubSnapshot:
    """The bundle at a revision, downloaded unless its commit is in the cache.

    If the hub is unavailable (no network, `HF_HUB_OFFLINE`, a timeout, status 429 or 5xx), the
    commit that the revision was at last time is used, with a warning that names it.

    Args:
        cache: the folder of huggingface_hub's cache, by default that of `HF_HUB_CACHE`.

    Raises:
        MuvaError: the hub refuses, has no bundle at this revision, or is unavailable while the
            cache has none either; or the download is damaged.
    """
    from httpx2 import HTTPError  # huggingface_hub does not wrap the errors of its client

    if address.is_commit and (snapshot := _cached(address, cache)):
        return snapshot
    try:
        files = _files_on_hub(address)
        _check_files(address, files)
        return _downloaded(address, cache)
    except (HTTPError, OSError, ValueError) as error:
        reason = unavailable_reason(error)
        snapshot = _cached(address, cache)
        if reason is None:
            raise _with_cached(refusal(error, address), snapshot) from error
        if snapshot is None:
            raise MuvaError(
                f"{address.uri}: {reason}, and the local cache has no copy. Try again once the "
                "hub is available, or copy the bundle from a machine that has it and name its "
                "folder"
            ) from error
        logging.getLogger(__name__).warning(
            "%s: %s; the cached commit %s is used", address.uri, reason, snapshot.commit
        )
        return snapshot


def _files_on_hub(address: HubAddress) -> list[str]:
    from huggingface_hub import HfApi

    info = HfApi(library_name="muva").model_info(
        address.repository, revision=address.revision, timeout=TIMEOUT_S
    )
    return [one.rfilename for one in info.siblings or ()]


def _check_files(address: HubAddress, files: Collection[str]) -> None:
    if set(FILES) <= set(files):
        return
    found = ", ".join(sorted(files)[:_NAMED]) or "no files"
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    raise MuvaError(
        f"{address.uri}: this repository is not a model bundle: expected {' and '.join(FILES)}, "
        f"found {found}{more}. A bundle is pushed with `muva models push`; weights of another "
        "program can be downloaded and imported with `muva models import`"
    )


def _downloaded(address: HubAddress, cache: Path | None) -> HubSnapshot:
    """Both files of one commit; a download that does not match its checksum is repeated once."""
    description = _file(address, DESCRIPTION, cache)
    pinned = address.at(description.parent.name)  # a branch may move between the two downloads
    fresh = _cached(pinned, cache) is None
    weights = _file(pinned, WEIGHTS, cache)
    expected = parse_description(description.read_bytes(), where=pinned.uri)["sha256"]
    if fresh and _sha256(weights) != expected:
        weights = _file(pinned, WEIGHTS, cache, again=True)
        if (found := _sha256(weights)) != expected:
            weights.resolve().unlink()
            weights.unlink(missing_ok=True)
            raise MuvaError(
                f"{pinned.uri}: {WEIGHTS} is damaged: expected the SHA-256 {expected[:16]}…, which "
                f"{DESCRIPTION} states, and downloaded {found[:16]}… twice. Push the model again, "
                "or name another revision"
            )
    return HubSnapshot(address=address, commit=pinned.revision, folder=description.parent)


def _file(address: HubAddress, name: str, cache: Path | None, *, again: bool = False) -> Path:
    from huggingface_hub import HfApi

    return Path(
        HfApi(library_name="muva").hf_hub_download(
            address.repository,
            name,
            revision=address.revision,
            cache_dir=cache,
            etag_timeout=TIMEOUT_S,
            force_download=again,
        )
    )


def _cached(address: HubAddress, cache: Path | None) -> HubSnapshot | None:
    """The bundle at the commit that the revision was at last time, if both files are cached."""
    from huggingface_hub import try_to_load_from_cache

    found = [
        try_to_load_from_cache(address.repository, name, revision=address.revision, cache_dir=cache)
        for name in FILES
    ]
    if not all(isinstance(file, str) for file in found):
        return None
    folder = Path(str(found[0])).parent
    return HubSnapshot(address=address, commit=folder.name, folder=folder)


def _with_cached(error: MuvaError, snapshot: HubSnapshot | None) -> MuvaError:
    """The error, with the commit that can be used without asking the hub."""
    if snapshot is None:
        return error
    return MuvaError(f"{error}. The cached copy is {snapshot.uri}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
