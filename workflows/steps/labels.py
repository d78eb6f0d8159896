"""Choosing among the pseudo-labels of a data set."""

from __future__ import annotations

from muva.data import formats
from muva.data.artifacts import Artifact, find_artifact, list_artifacts
from muva.data.shards import Dataset
from muva.errors import MuvaError, SettingsError
from workflows.progress import say
from workflows.session import Session

IMPORTED = "imported"
"""In place of an expert's name: pseudo-labels that were imported from a file."""
REFINED = "refined"
"""In place of an expert's name: pseudo-labels that were refined by rules."""


def choose_labels(
    session: Session,
    dataset: Dataset,
    *,
    expert: str | None = None,
    labels: str | None = None,
    unlike: str | None = None,
) -> Artifact:
    """The newest matching pseudo-labels of this data set; MuvaError if there are none.

    `labels` is their name or address, `expert` their expert; with `unlike`, those of any other
    expert are preferred. Pseudo-labels in an unsupported format are reported and skipped.
    """
    if labels is not None:
        if expert is not None:
            raise SettingsError("expected either --labels, which names one label set, or --expert")
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
        there = f"; there are labels by {known}" if known else ""
        remedy = (
            f"`muva masks import {dataset.name} FILE`"
            if expert == IMPORTED
            else f"`muva ground {dataset.name}{f' --expert {expert}' if expert else ''}`"
        )
        raise MuvaError(f"{dataset.name}: has no labels{wanted}{there}. Run {remedy}")
    return max(fitting, key=lambda entry: entry[0])[2]
