"""Models by address: bundles in a store, in a folder, or a CLIP as it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muva.data import formats
from muva.data.artifacts import Artifact, find_artifact, open_artifact
from muva.data.store import Store
from muva.errors import MuvaError
from muva.model.bundle import DESCRIPTION, Bundle, load_bundle, parse_description, save_bundle
from muva.model.muva_model import MuvaModel

BUNDLE = "bundle"
"""The bundle's folder within a model artifact."""

IMPORTED = "imported"
"""Key in a bundle's metadata: which file of another program it was made from."""


def load(uri: str | Path) -> Bundle:
    """Opens a trained model: `load(uri).embed(images)`.

    `uri` is a bundle's folder, or a model artifact: `<store>/models/<name>-<fingerprint>`, the
    store being a folder or `s3://bucket/prefix`. Raises `MuvaError` when there is no finished
    model, or a damaged one.
    """
    if (Path(uri) / DESCRIPTION).is_file():
        return load_bundle(Path(uri))
    artifact = open_artifact(str(uri))
    if artifact.kind != "models":
        raise MuvaError(f"{artifact.uri}: expected a model, found one of the {artifact.kind}")
    _check_finished(artifact)
    with local_copy(artifact, BUNDLE) as folder:
        try:
            return load_bundle(folder)
        except MuvaError as error:  # which names the copy
            raise MuvaError(f"{artifact.uri}: {str(error).replace(f'{folder}', BUNDLE)}") from error


def find_model(store: Store, reference: str) -> Artifact:
    """The model that a person means: by its URI, or by its name or address in this store."""
    if reference.count("/") > 1:
        return open_artifact(reference)
    return find_artifact(store, "models", reference)


def model_description(artifact: Artifact) -> Mapping[str, Any]:
    """What a finished model's bundle says of itself: settings, sizes, origin; no weights are read.

    Raises MuvaError when there is no finished model, or a damaged one.
    """
    _check_finished(artifact)
    stored = artifact.store.read(artifact.key(BUNDLE, DESCRIPTION))
    return parse_description(stored, where=artifact.uri)


def store_bundle(artifact: Artifact, model: MuvaModel, *, metadata: Mapping[str, Any]) -> None:
    """Writes a model's bundle into its artifact; committing is left to the caller."""
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(model, Path(folder), metadata=metadata)
        for file in sorted(Path(folder).iterdir()):
            artifact.store.write(artifact.key(BUNDLE, file.name), file.read_bytes())


@contextmanager
def local_copy(artifact: Artifact, folder: str) -> Iterator[Path]:
    """A folder of an artifact as a local folder of links, for the length of the block."""
    prefix = artifact.key(folder) + "/"
    with tempfile.TemporaryDirectory() as copy:
        for key in artifact.store.list(prefix):
            (Path(copy) / key.removeprefix(prefix)).symlink_to(artifact.store.path(key))
        yield Path(copy)


def _check_finished(artifact: Artifact) -> None:
    if artifact.manifest(format_version=formats.BUNDLE) is None:
        raise MuvaError(
            f"{artifact.uri}: there is no finished model. If its training was interrupted, the "
            "same command goes on with it"
        )
