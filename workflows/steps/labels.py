"""Choosing among the pseudo-labels that a data set has."""

from __future__ import annotations

from muva.data import formats
from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.data.shards import Dataset
from muva.errors import MuvaError, SettingsError
from workflows.progress import say
from workflows.session import Session

IMPORTED = "imported"
"""Stands for an expert: pseudo-labels that were imported from a file."""
REFINED = "refined"
"""Stands for an expert: pseudo-labels that rules made from others."""


def choose_labels(
    session: Session,
    dataset: Dataset,
    *,
    expert: str | None = None,
    labels: str | None = None,
    unlike: str | None = None,
) -> Artifact:
    """The newest matching pseudo-labels of this data set; MuvaError where there are none.

    `labels` names them, `expert` says who made them; `unlike` prefers those of any other expert.
    Pseudo-labels in a format that this version does not read are skipped, and named.
    """
    if labels is not None:
        if expert is not None:
            raise SettingsError("--labels names one label set: expected it without --expert")
        return find_artifact(session.store, "labels", labels)
    made: list[tuple[str, str, Artifact]] = []
    for artifact in list_artifacts(session.store, "labels"):
        manifest = artifact.manifest()
        if not manifest or manifest["summary"]["dataset_fingerprint"] != dataset.fingerprint:
            continue
        if manifest["format_version"] != formats.LABELS:
            say(f"Skipped: {artifact.address} has the format {manifest['format_version']}")
        else:
            config = manifest["config"]
            by = IMPORTED if "imported" in config else config.get("expert", REFINED)
            made.append((manifest["created"], by, artifact))
    fitting = [entry for entry in made if expert is None or entry[1] == expert]
    fitting = [entry for entry in fitting if entry[1] != unlike] or fitting
    if not fitting:
        known = ", ".join(sorted({by for _, by, _ in made}))
        wanted = f" by {expert}" if expert else ""
        there = f"; there are those by {known}" if known else ""
        remedy = (
            f"`muva masks import {dataset.name} FILE`"
            if expert == IMPORTED
            else f"`muva ground {dataset.name}{f' --expert {expert}' if expert else ''}`"
        )
        raise MuvaError(f"{dataset.name}: has no labels{wanted}{there}. Run {remedy}")
    return max(fitting, key=lambda entry: entry[0])[2]
