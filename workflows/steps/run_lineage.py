"""Data sets and models in the terms in which MLflow is told of them; a recipe's settings too.

MLflow is imported where a run is written: by the driver alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig, differences, load_recipe
from muva.data.artifacts import Artifact, open_artifact
from muva.data.shards import open_dataset
from muva.models import BUNDLE, described, local_copy
from workflows.steps.embed import UNTOUCHED

ALWAYS_TOLD = (
    "seed",
    "model.clip",
    "model.parts",
    "model.gating",
    "stage1.epochs",
    "stage2.epochs",
    "stage2.lr",
    "stage2.batch_size",
)
"""Settings that every pipeline's run has among its parameters, so that runs can be compared."""
NOT_TOLD = ("tune", "name", "description", "execution")

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.lineage import UsedDataset, UsedModel
    from tracking.runs import Run


def told_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Parameters of a pipeline or search: those, and what differs from `base`."""
    told = differences(config, load_recipe("base"))
    told = {name: value for name, value in told.items() if not name.startswith(NOT_TOLD)}
    whole = config.model_dump(mode="json")
    for name in ALWAYS_TOLD:
        value: Any = whole
        for step in name.split("."):
            value = value[step]
        told[name] = value
    return told


def used_dataset(artifact: Artifact) -> UsedDataset:
    """A data set as a run's input."""
    from tracking.lineage import UsedDataset

    dataset = open_dataset(artifact)
    return UsedDataset(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        uri=artifact.uri,
        counts=dataset.summary.splits,
    )


def used_model(model: str) -> UsedModel:
    """A model, by its URI or as `clip:NAME`."""
    from tracking.lineage import UsedModel

    if model.startswith(UNTOUCHED):
        name = re.sub(r"[^\w-]+", "-", model)
        return UsedModel(name=name, address=name, params={"clip": model.removeprefix(UNTOUCHED)})
    artifact = open_artifact(model)
    manifest: Mapping[str, Any] = artifact.manifest() or {"config": {}, "inputs": {}}
    sources = [
        address.split("/")[-1].rpartition("-")[0]
        for role, address in manifest["inputs"].items()
        if role.startswith("source ")
    ]
    settings = manifest["config"].get("model", {})
    params = {
        "sources": " + ".join(sources),
        "clip": str(settings.get("clip", "")),
        "parts": ", ".join(settings.get("parts", ())),
        "seed": str(manifest["config"].get("seed", "")),
        "epoch": str(manifest["config"].get("epoch", "")),
    }
    return UsedModel(
        name=re.sub(r"[^\w-]+", "-", artifact.name),
        address=artifact.address,
        params={name: value for name, value in params.items() if value},
        tags={"uri": artifact.uri},
    )


def served_model(run: Run, model: Artifact) -> str:
    """The id of a model's logged model, with the files by which MLflow loads and serves it."""
    from tracking.models import add_files, has_files

    feature_dim = described(model)["feature_dim"]
    model_id = run.model(used_model(model.uri), made=False)
    if not has_files(run, model_id):  # a bundle may be far away, and large
        with local_copy(model, BUNDLE) as bundle:
            add_files(run, model_id, bundle, address=model.address, feature_dim=feature_dim)
    return model_id
