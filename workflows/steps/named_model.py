"""The model that a command names: in the store, shipped, in a folder, or on the Hugging Face Hub.

A model outside the store is copied into it, once per version, as an artifact like any other. Ray's
workers then read it from the store, however many they are: they need neither the hub nor a token,
nor the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muva.data import formats
from muva.data.artifacts import Artifact, check_name, list_artifacts
from muva.errors import SettingsError
from muva.hub.address import is_hub_uri, parse_hub_address
from muva.hub.download import download_bundle
from muva.model.bundle_description import (
    DESCRIPTION,
    HUB,
    SHIPPED_MODELS,
    WEIGHTS,
    parse_description,
)
from muva.models import BUNDLE, bundle_folder, find_model
from workflows.progress import track
from workflows.session import Session
from workflows.steps.step import Step, run_step

_FOLDER = "bundle"
"""Key in the settings of a copy of a shipped model or of a folder: the SHA-256 of `bundle.json`,
which holds that of the weights."""


def named_model(session: Session, reference: str) -> Artifact:
    """The model of a name, an address in the store, a URI, a bundle's folder, or `hf://ORG/NAME`.

    A folder is given with a slash, as `./NAME`; without one, it is the name of a shipped model or
    of one in the store.

    Raises:
        SettingsError: the store has a model of its own with the name of a shipped one.
        MuvaError: there is none, or the hub does not give it; see `download_bundle`.
    """
    if is_hub_uri(reference):
        snapshot = download_bundle(parse_hub_address(reference))
        return _copied(
            session,
            snapshot.folder,
            name=snapshot.address.name,
            origin=snapshot.uri,
            settings={HUB: {"repository": snapshot.address.repository, "commit": snapshot.commit}},
            provenance={
                key: value for key, value in snapshot.provenance.items() if key != "revision"
            },
        )
    shipped = reference in SHIPPED_MODELS
    if shipped:
        _check_not_in_store(session, reference)
    folder = bundle_folder(reference) if shipped or "/" in reference else None
    if folder is None:
        return find_model(session.store, reference)
    stored = hashlib.sha256((folder / DESCRIPTION).read_bytes()).hexdigest()
    return _copied(
        session,
        folder,
        name=check_name(folder.resolve().name),
        origin=reference,
        settings={_FOLDER: stored},
    )


def _check_not_in_store(session: Session, name: str) -> None:
    for artifact in list_artifacts(session.store, "models"):
        if artifact.name != name:
            continue
        manifest = artifact.manifest()
        if manifest and _FOLDER not in manifest["config"]:
            raise SettingsError(
                f"{name} is the model that comes with muva, and the store has another one of this "
                f"name: to use that, give its address, {artifact.address}; to use the shipped one, "
                f"give its folder, {SHIPPED_MODELS[name]}"
            )


def _copied(
    session: Session,
    folder: Path,
    *,
    name: str,
    origin: str,
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any] | None = None,
) -> Artifact:
    """The copy of a bundle in the store, whose address follows from these settings."""
    step = Step(
        title=f"copy {origin} into the store",
        store=session.store,
        kind="models",
        name=name,
        format_version=formats.BUNDLE,
        settings=dict(settings),
    )

    def work(_: object) -> dict[str, Any]:
        with track(step.title):
            return _write(step.artifact, folder, origin, provenance)

    # Nothing is computed, so there is no run to log.
    untracked = dataclasses.replace(session, tracking_uri=None)
    return run_step(step, session=untracked, work=work).artifact


def _write(
    artifact: Artifact, folder: Path, origin: str, provenance: Mapping[str, Any] | None
) -> dict[str, Any]:
    description = dict(parse_description((folder / DESCRIPTION).read_bytes(), where=origin))
    if provenance is not None:
        description["metadata"] = {**description["metadata"], HUB: dict(provenance)}
    stored = json.dumps(description, indent=2) + "\n"
    artifact.store.write(artifact.key(BUNDLE, DESCRIPTION), stored.encode())
    artifact.store.write(artifact.key(BUNDLE, WEIGHTS), (folder / WEIGHTS).read_bytes())
    return {key: description[key] for key in ("identities", "feature_dim")}
