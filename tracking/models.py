"""Models in MLflow: a bundle with a script that uses it, which MLflow loads and serves."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema, TensorSpec

from tracking.addresses import attached_client
from tracking.lineage import ADDRESS_TAG
from tracking.runs import Run

SCRIPT = Path(__file__).with_name("served_model.py")
SERVED_TYPE = "features of images"
"""Type of logged models that can be served; those of trainings and evaluations have no files."""


def log_model(run: Run, bundle: Path, *, name: str, address: str, feature_dim: int) -> str:
    """Logs a model bundle, a folder, with this run as its source; gives `models:/ID`.

    A model of that address that the run's experiment has already is not logged twice.
    """
    client = attached_client(run.ref.tracking_uri)
    known = _ready(client, run.ref.experiment_id, address)
    if known is not None:
        return f"models:/{known}"
    made = client.create_logged_model(
        run.ref.experiment_id,
        name=name,
        source_run_id=run.ref.run_id,
        tags={ADDRESS_TAG: address},
        model_type=SERVED_TYPE,
    )
    status = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            named, saved = Path(folder) / "bundle", Path(folder) / "model"
            shutil.copytree(bundle, named)  # MLflow takes over the folder's name, and no links
            mlflow.pyfunc.save_model(
                saved,
                mlflow_model=Model(
                    artifact_path=made.artifact_location,
                    run_id=run.ref.run_id,
                    model_uuid=made.model_id,
                    model_id=made.model_id,
                ),
                python_model=f"{SCRIPT}",
                artifacts={"bundle": f"{named}"},
                signature=signature(feature_dim),
                pip_requirements=[_requirement()],
                metadata={ADDRESS_TAG: address},
            )
            client.log_model_artifacts(made.model_id, f"{saved}")
        client.log_outputs(run.ref.run_id, [LoggedModelOutput(made.model_id, step=0)])
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(made.model_id, status)
    return f"models:/{made.model_id}"


def signature(feature_dim: int) -> ModelSignature:
    """A column `image` of whatever the script takes, to features (B, F)."""
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, feature_dim))]),
    )


def _ready(client: MlflowClient, experiment_id: str, address: str) -> str | None:
    found = client.search_logged_models(
        [experiment_id], filter_string=f"tags.`{ADDRESS_TAG}` = '{address}'"
    )
    ready = [
        one.model_id
        for one in found
        if one.status == LoggedModelStatus.READY and one.model_type == SERVED_TYPE
    ]
    return ready[0] if ready else None


def _requirement() -> str:
    try:
        return f"muva=={version('muva')}"
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "muva"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's advice on how models may be saved otherwise, and its bars."""
    logger, shown = logging.getLogger("mlflow"), MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.get_raw()
    before = logger.level
    logger.setLevel(logging.ERROR)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        if shown is None:
            MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.unset()
        else:
            MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(shown)
