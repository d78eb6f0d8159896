"""Finds, loads and stores model bundles: in an artifact store, in a folder, or on the hub.

Importing torch and open_clip takes seconds, so only what loads or stores weights imports them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.data import formats
from muva.data.artifacts import Artifact, find_artifact, open_artifact
from muva.data.store import Store
from muva.errors import MuvaError, SettingsError
from muva.hub.address import SCHEME, HubAddress, is_hub_uri, parse_hub_address
from muva.model.bundle_description import DESCRIPTION, HUB, SHIPPED_MODELS, parse_description

if TYPE_CHECKING:
    from muva.model.bundle import Bundle
    from muva.model.muva_model import MuvaModel

BUNDLE = "bundle"
"""The bundle's folder within a model artifact."""

IMPORTED = "imported"
"""Key in a bundle's metadata: the file of another program that the model was imported from."""


def load(
    uri: str | Path, *, revision: str | None = None, cache: str | Path | None = None
) -> Bundle:
    """Load a trained model: `load("synthetic").embed(images)`.

    Args:
        uri: `synthetic`, the model that comes with muva, trained on rendered people; the folder of
            a bundle; a model artifact, `<store>/models/<name>-<fingerprint>`, whose store is a
            folder or `s3://bucket/prefix`; or a model on the Hugging Face Hub, `hf://ORG/NAME` or
            `hf://ORG/NAME@REVISION`. A private one needs HF_TOKEN or `hf auth login`.
        revision: of a model on the hub: a branch, a tag or a commit. [main]
        cache: the folder for downloads from the hub. [that of HF_HUB_CACHE]

    The metadata of a model from the hub names the commit. If the hub is unavailable, the commit in
    the cache is used, with a warning.

    Raises:
        MuvaError: there is no finished model at this address, or it is damaged.
    """
    from muva.model.bundle import load_bundle

    if is_hub_uri(uri):
        return _load_from_hub(parse_hub_address(str(uri), revision=revision), cache)
    if revision is not None or cache is not None:
        raise SettingsError(
            f"{uri}: revision and cache apply to models on the hub: expected {SCHEME}ORG/NAME"
        )
    if (folder := bundle_folder(uri)) is not None:
        return load_bundle(folder)
    artifact = open_artifact(str(uri))
    if artifact.kind != "models":
        raise MuvaError(
            f"{artifact.uri}: expected a model, found an artifact of kind {artifact.kind}"
        )
    _check_finished(artifact)
    with local_copy(artifact, BUNDLE) as folder:
        try:
            return load_bundle(folder)
        except MuvaError as error:  # its message names the local copy
            raise MuvaError(f"{artifact.uri}: {str(error).replace(f'{folder}', BUNDLE)}") from error


def _load_from_hub(address: HubAddress, cache: str | Path | None) -> Bundle:
    from muva.hub.download import download_bundle
    from muva.model.bundle import load_bundle

    snapshot = download_bundle(address, cache=Path(cache) if cache is not None else None)
    try:
        bundle = load_bundle(snapshot.folder)
    except MuvaError as error:  # its message names the folder in the cache
        raise MuvaError(
            f"{snapshot.uri}: {error}. If the file is damaged, delete this folder of the cache and "
            "load the model again"
        ) from error
    bundle.metadata = {**bundle.metadata, HUB: snapshot.provenance}
    return bundle


def bundle_folder(reference: str | Path) -> Path | None:
    """The folder of a shipped model or of a path to a bundle; None if it is neither."""
    shipped = SHIPPED_MODELS.get(reference) if isinstance(reference, str) else None
    folder = shipped or Path(reference).expanduser()
    return folder if (folder / DESCRIPTION).is_file() else None


def find_model(store: Store, reference: str) -> Artifact:
    """Find a model by its URI, or by its name or address in this store."""
    if reference.count("/") > 1:
        return open_artifact(reference)
    return find_artifact(store, "models", reference)


def model_description(artifact: Artifact) -> Mapping[str, Any]:
    """The description of a finished model: settings, sizes and provenance, without its weights.

    Raises:
        MuvaError: there is no finished model, or it is damaged.
    """
    _check_finished(artifact)
    stored = artifact.store.read(artifact.key(BUNDLE, DESCRIPTION))
    return parse_description(stored, where=artifact.uri)


def store_bundle(artifact: Artifact, model: MuvaModel, *, metadata: Mapping[str, Any]) -> None:
    """Write a model's bundle into its artifact, which the caller then commits."""
    from muva.model.bundle import save_bundle

    with tempfile.TemporaryDirectory() as folder:
        save_bundle(model, Path(folder), metadata=metadata)
        for file in sorted(Path(folder).iterdir()):
            artifact.store.write(artifact.key(BUNDLE, file.name), file.read_bytes())


@contextmanager
def local_copy(artifact: Artifact, folder: str) -> Iterator[Path]:
    """A local folder of links to an artifact's folder, inside the `with` block."""
    prefix = artifact.key(folder) + "/"
    with tempfile.TemporaryDirectory() as copy:
        for key in artifact.store.list(prefix):
            (Path(copy) / key.removeprefix(prefix)).symlink_to(artifact.store.path(key))
        yield Path(copy)


def _check_finished(artifact: Artifact) -> None:
    if artifact.manifest(format_version=formats.BUNDLE) is None:
        raise MuvaError(
            f"{artifact.uri}: there is no finished model. If its training was interrupted, the "
            "same command resumes it"
        )
