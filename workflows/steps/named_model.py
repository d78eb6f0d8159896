"""The model that a command names: in the store, at another address, or on the Hugging Face Hub.

A model on the hub is copied into the store, once per commit, as an artifact like any other. Ray's
workers then read it from the store, however many they are: they need neither the hub nor a token.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.hub.address import is_hub_uri, parse_hub_address
from muva.hub.download import HubSnapshot, download_bundle
from muva.model.bundle_description import DESCRIPTION, HUB, WEIGHTS, parse_description
from muva.models import BUNDLE, find_model
from workflows.progress import track
from workflows.session import Session
from workflows.steps.step import Step, run_step


def named_model(session: Session, reference: str) -> Artifact:
    """The model of a name, an address in the store, a URI, or `hf://ORG/NAME[@REVISION]`.

    Raises:
        MuvaError: there is none, or the hub does not give it; see `download_bundle`.
    """
    if not is_hub_uri(reference):
        return find_model(session.store, reference)
    return _copied(session, download_bundle(parse_hub_address(reference)))


def _copied(session: Session, snapshot: HubSnapshot) -> Artifact:
    """The copy of a bundle in the store, whose address follows from repository and commit."""
    step = Step(
        title=f"copy {snapshot.uri} into the store",
        store=session.store,
        kind="models",
        name=snapshot.address.name,
        format_version=formats.BUNDLE,
        settings={HUB: {"repository": snapshot.address.repository, "commit": snapshot.commit}},
    )

    def work(_: object) -> dict[str, Any]:
        with track(step.title):
            return _write(step.artifact, snapshot)

    # Nothing is computed, so there is no run to log.
    untracked = dataclasses.replace(session, tracking_uri=None)
    return run_step(step, session=untracked, work=work).artifact


def _write(artifact: Artifact, snapshot: HubSnapshot) -> dict[str, Any]:
    description = dict(
        parse_description((snapshot.folder / DESCRIPTION).read_bytes(), where=snapshot.uri)
    )
    origin = {key: value for key, value in snapshot.provenance.items() if key != "revision"}
    description["metadata"] = {**description["metadata"], HUB: origin}
    stored = json.dumps(description, indent=2) + "\n"
    artifact.store.write(artifact.key(BUNDLE, DESCRIPTION), stored.encode())
    artifact.store.write(artifact.key(BUNDLE, WEIGHTS), (snapshot.folder / WEIGHTS).read_bytes())
    return {key: description[key] for key in ("identities", "feature_dim")}
