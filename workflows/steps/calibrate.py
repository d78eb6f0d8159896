"""Calibration as a step: what a model's cosines mean, learned from people of its sources.

The people are those whom a source keeps for tests, so the model was not trained on them. The result
is a model with the same weights, and therefore the same features, whose bundle has a calibration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from muva.config import ModelConfig
from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.benchmarks.listing import some
from muva.data.lineage import Role
from muva.data.shards import open_dataset
from muva.model.bundle_description import CALIBRATION, DESCRIPTION, WEIGHTS
from muva.models import BUNDLE, model_description
from muva.retrieval.calibration_fit import Pairs, calibrate, calibration_pairs
from muva.retrieval.features import Features
from workflows.session import Session
from workflows.steps.embed import EvaluationSet, embed, features_step, image_labels
from workflows.steps.rank import FeatureParts, camera_rule
from workflows.steps.step import Step, StepResult, run_step


def calibration_step(
    session: Session, model: Artifact, features: Sequence[Artifact], *, on: Sequence[str], name: str
) -> Step:
    """The declaration of a model's calibration by the features of these data sets."""
    return Step(
        title=f"calibrate {model.name} on {some(on)}",
        store=session.store,
        kind="models",
        name=name,
        format_version=formats.BUNDLE,
        settings={CALIBRATION: formats.CALIBRATION},
        inputs={Role.MODEL: [model], Role.FEATURES: list(features)},
    )


def calibrate_model(
    session: Session, model: Artifact, datasets: Mapping[str, Artifact], *, name: str
) -> StepResult:
    """A copy of a model with a calibration by the query and gallery images of these data sets."""
    description = model_description(model)
    config = ModelConfig.model_validate(description["model"])
    images = {key: EvaluationSet(dataset=a, held_out=False) for key, a in datasets.items()}
    embeddings = {
        key: features_step(session, model.uri, one, config, name=model.name)
        for key, one in images.items()
    }
    features = [embedding.artifact for embedding in embeddings.values()]
    step = calibration_step(session, model, features, on=list(datasets), name=name)
    if step.manifest() is None:
        for key, embedding in embeddings.items():
            embed(session, embedding, model.uri, images[key], config)

    def work(_: object) -> dict[str, Any]:
        from workflows.runtime.cluster import ray_cluster
        from workflows.runtime.tasks import run_tasks

        with ray_cluster():
            calls = [
                (FeatureParts(embeddings[key].artifact), image_labels(one.rows()))
                for key, one in images.items()
            ]
            found = run_tasks(pairs_of, calls)
        names = [open_dataset(one.dataset).name for one in images.values()]
        calibration = calibrate(dict(zip(names, found, strict=True)))
        changed = dict(description)
        changed["metadata"] = {
            **description["metadata"],
            CALIBRATION: calibration.as_json(),
        }
        stored = (json.dumps(changed, indent=2) + "\n").encode()
        step.artifact.store.write(step.artifact.key(BUNDLE, DESCRIPTION), stored)
        weights = model.store.read(model.key(BUNDLE, WEIGHTS))
        step.artifact.store.write(step.artifact.key(BUNDLE, WEIGHTS), weights)
        kept = {key: description[key] for key in ("identities", "feature_dim")}
        return {**kept, CALIBRATION: calibration.as_json()}

    return run_step(step, session=session, work=work)


def pairs_of(parts: FeatureParts, labels: Features) -> Pairs:
    """The pairs of one data set, in a task."""
    rule = camera_rule(labels)
    return calibration_pairs(
        parts.read(np.asarray(labels.queries)), parts.read(np.asarray(labels.gallery)), rule
    )
