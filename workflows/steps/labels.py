"""Which of a data set's label sets is meant."""

from __future__ import annotations

from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.data.shards import Dataset
from muva.errors import MuvaError, SettingsError
from muva.grounding.labels import (
    LABEL_FORMAT,
)
from workflows.session import Session

IMPORTED = "imported"
"""In place of an expert's name: labels that came from elsewhere."""


REFINED = "refined"
"""The same: labels that rules made of others."""


def choose_labels(
    session: Session,
    dataset: Dataset,
    *,
    expert: str | None = None,
    labels: str | None = None,
    unlike: str | None = None,
) -> Artifact:
    """A label set of this data set, the newest that fits; MuvaError where there is none.

    `unlike`: of any expert but this one, where there is another.
    """
    if labels is not None:
        if expert is not None:
            raise SettingsError("--labels names one label set: expected it without --expert")
        return find_artifact(session.store, "labels", labels)
    made: list[tuple[str, str, Artifact]] = []
    for artifact in list_artifacts(session.store, "labels"):
        if artifact.name != dataset.name:
            continue
        manifest = artifact.manifest(format_version=LABEL_FORMAT)
        if manifest and manifest["summary"]["dataset_fingerprint"] == dataset.fingerprint:
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
