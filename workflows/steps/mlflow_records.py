"""What MLflow records of a pipeline: parameters, and data sets and models as inputs and outputs.

MLflow is imported where a run is written: by the driver only.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig, differences, load_recipe
from muva.data.artifacts import Artifact, artifact_at, open_artifact
from muva.data.lineage import Node, Role, node_at
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from muva.models import model_description
from tracking.redaction import redact
from workflows.steps.embed import UNTRAINED

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.lineage import UsedDataset, UsedModel
    from tracking.runs import Run

ALWAYS_LOGGED = (
    "seed",
    "model.clip",
    "model.parts",
    "model.gating",
    "stage1.epochs",
    "stage2.epochs",
    "stage2.lr",
    "stage2.batch_size",
)
"""Settings that are logged as parameters of every pipeline, so that runs can be compared."""
NOT_LOGGED = ("tune", "name", "description", "execution")


def run_params(config: ExperimentConfig) -> dict[str, Any]:
    """The parameters of a pipeline or search: `ALWAYS_LOGGED`, and what differs from `base`."""
    params = differences(config, load_recipe("base"))
    params = {name: value for name, value in params.items() if not name.startswith(NOT_LOGGED)}
    whole = config.model_dump(mode="json")
    for name in ALWAYS_LOGGED:
        value: Any = whole
        for step in name.split("."):
            value = value[step]
        params[name] = value
    return params


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
    """A model as a run's input or output, by its URI or as `clip:NAME`."""
    from tracking.lineage import UsedModel

    if model.startswith(UNTRAINED):
        name = re.sub(r"[^\w-]+", "-", model)
        return UsedModel(name=name, address=name, params={"clip": model.removeprefix(UNTRAINED)})
    artifact = open_artifact(model)
    trained = training_of(node_at(artifact.store, artifact.address))
    made_by = trained.manifest or trained.started or {"config": {}}
    settings = made_by["config"].get("model", {})
    params = {
        "sources": " + ".join(
            artifact_at(artifact.store, address).name
            for address in trained.inputs.get(Role.SOURCE, ())
        ),
        "clip": str(settings.get("clip", "")),
        "parts": ", ".join(settings.get("parts", ())),
        "seed": str(made_by["config"].get("seed", "")),
        "checkpoint": str((artifact.manifest() or {}).get("facts", {}).get("checkpoint", "")),
    }
    return UsedModel(
        name=re.sub(r"[^\w-]+", "-", artifact.name),
        address=artifact.address,
        params={name: value for name, value in params.items() if value},
        tags={"uri": artifact.uri},
    )


def training_of(model: Node) -> Node:
    """The model after the last epoch of the training that this model belongs to."""
    given = model.inputs.get(Role.TRAINING)
    return node_at(model.artifact.store, given[0]) if given else model


def served_model(run: Run, model: Artifact) -> str:
    """The id of the logged model in MLflow, with the files for loading and serving it.

    Raises:
        MuvaError: the server has no logged models.
    """
    from muva.models import BUNDLE, local_copy
    from tracking.models import add_files, has_files

    feature_dim = model_description(model)["feature_dim"]
    model_id = run.log_model(used_model(model.uri), made=False)
    if model_id is None:
        raise MuvaError(
            f"MLflow at {redact(run.ref.tracking_uri)} has no logged models, with which models are "
            "served and registered. Expected a server of MLflow 3 or newer: upgrade it, or name "
            "another one with --tracking-uri"
        )
    if not has_files(run, model_id):  # a bundle may be remote and large
        with local_copy(model, BUNDLE) as bundle:
            add_files(run, model_id, bundle, address=model.address, feature_dim=feature_dim)
    return model_id
