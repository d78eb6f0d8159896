"""Servable models in MLflow: a bundle with a script that MLflow loads and serves."""

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
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema, TensorSpec

from tracking.connection import attached_client
from tracking.names import ARTIFACT_TAG
from tracking.runs import Run

SCRIPT = Path(__file__).with_name("served_model.py")
_COMPLETE_TAG = "muva.servable"
"""Set when all files are uploaded; a logged model is created before it has any."""


def has_files(run: Run, model_id: str) -> bool:
    """Whether a logged model has all its files."""
    client = attached_client(run.ref.tracking_uri)
    return _COMPLETE_TAG in client.get_logged_model(model_id).tags


def add_files(run: Run, model_id: str, bundle: Path, *, address: str, feature_dim: int) -> None:
    """Upload a model's bundle folder to its logged model, so that MLflow can load and serve it."""
    client = attached_client(run.ref.tracking_uri)
    model = client.get_logged_model(model_id)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        named, saved = Path(folder) / "bundle", Path(folder) / "model"
        shutil.copytree(
            bundle, named
        )  # MLflow keeps the name of the folder, and does not follow links
        mlflow.pyfunc.save_model(
            saved,
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                run_id=run.ref.run_id,
                model_uuid=model_id,
                model_id=model_id,
            ),
            python_model=f"{SCRIPT}",
            artifacts={"bundle": f"{named}"},
            signature=signature(feature_dim),
            pip_requirements=[_requirement()],
            metadata={ARTIFACT_TAG: address},
        )
        client.log_model_artifacts(model_id, f"{saved}")
    client.set_logged_model_tags(model_id, {_COMPLETE_TAG: "true"})


def signature(feature_dim: int) -> ModelSignature:
    """The model signature: a column `image` of any type to features (B, F)."""
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, feature_dim))]),
    )


def _requirement() -> str:
    try:
        return f"muva=={version('muva')}"
    except PackageNotFoundError:  # muva is imported from a source tree, not installed
        return "muva"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence MLflow's warnings about saving models and its progress bars."""
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
