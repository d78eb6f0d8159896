"""The lineage of runs: data sets as inputs, and models as MLflow's logged models.

Each model artifact has one logged model, which is found by the artifact's address. Metrics are
linked to the model and the data set, so `search_logged_models` can rank models by the mAP on a
target.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import (
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
)

from tracking.names import ARTIFACT_TAG
from tracking.recordable import recordable_tags
from tracking.redaction import redact

MODEL_TYPE = "muva"
_CONTEXT_TAG = "mlflow.data.context"

Context = Literal["training", "evaluation", "held out"]
"""What a data set was used for; MLflow shows it next to the name."""


@dataclass(frozen=True, kw_only=True)
class UsedDataset:
    """A data set that is an input of a run."""

    name: str
    fingerprint: str
    """A hash of its rows, at most 36 characters."""
    uri: str = field(repr=False)
    counts: Mapping[str, Mapping[str, int]]
    """Split -> images, identities, cameras."""

    def as_input(self, context: Context) -> DatasetInput:
        """Convert to MLflow's DatasetInput."""
        columns = ["image_id", "pid", "camid", "split", "image"]
        dataset = MlflowDataset(
            name=self.name,
            digest=self.fingerprint,
            source_type="muva",
            source=json.dumps({"uri": redact(self.uri)}),
            schema=json.dumps({"columns": columns}),
            profile=json.dumps(self.counts),
        )
        return DatasetInput(dataset, [InputTag(_CONTEXT_TAG, context)])


@dataclass(frozen=True, kw_only=True)
class UsedModel:
    """A model artifact to be recorded as a logged model."""

    name: str
    address: str
    """The address of the artifact, or `clip:NAME`."""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def logged_model(client: MlflowClient, address: str) -> LoggedModel | None:
    """Find the logged model of an artifact in any experiment; None if there is none."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    found = client.search_logged_models(
        experiments, filter_string=f"tags.`{ARTIFACT_TAG}` = '{address}'"
    )
    return next((one for one in found if one.model_type == MODEL_TYPE), None)


def log_model(
    client: MlflowClient, model: UsedModel, *, experiment_id: str, run_id: str, made: bool
) -> str:
    """Link a run to a model's logged model, which is created if needed; returns its id.

    The model becomes an output of the run if the run `made` it, otherwise an input.
    """
    existing = logged_model(client, model.address)
    if existing is None:
        existing = client.create_logged_model(
            experiment_id,
            name=model.name,
            source_run_id=run_id if made else None,
            tags=recordable_tags({**model.tags, ARTIFACT_TAG: model.address}),
            params={name: redact(value) for name, value in model.params.items()},
            model_type=MODEL_TYPE,
        )
        client.finalize_logged_model(existing.model_id, "READY")
    if not made:
        client.log_inputs(run_id, models=[LoggedModelInput(existing.model_id)])
        return existing.model_id
    outputs = client.get_run(run_id).outputs
    if outputs is None or existing.model_id not in [one.model_id for one in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(existing.model_id, 0)])
    return existing.model_id
