"""Evaluation as a step: how well a model recognises people in camera networks it has not seen.

Ray tasks embed a target's images part by part. The ranking is exact, with bounded memory, in tasks
among which the gallery is divided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig
from muva.data import formats
from muva.data.artifacts import Artifact, open_artifact
from muva.data.lineage import Role
from muva.data.shards import open_dataset
from muva.model.bundle_description import CALIBRATION
from muva.models import model_description
from muva.retrieval.calibration import Calibration
from muva.retrieval.results import Scores
from tracking.names import score_metrics
from workflows.progress import track
from workflows.session import Session
from workflows.steps.embed import UNTRAINED, EvaluationSet, embed, features_step
from workflows.steps.mlflow_records import used_dataset, used_model
from workflows.steps.step import Step, run_step

if TYPE_CHECKING:
    from tracking.runs import Run


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of a model on a target."""

    scores: Scores
    seconds: float
    """How long computing them took this time, including features."""
    computed: bool

    def as_json(self) -> dict[str, Any]:
        """The scores and the time as plain data."""
        return {**self.scores.as_json(), "seconds": self.seconds}


def evaluate_on(
    session: Session,
    model: str,
    target: Artifact,
    config: ExperimentConfig,
    *,
    name: str,
    held_out: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Embed a target with a model (a URI, or `clip:NAME`) and score the ranking.

    `held_out` evaluates on the training images of a source that the model was not trained on, some
    of which become the queries; no image of any target is read. `facts` are recorded with the
    metrics: the recipe and variant of the model.
    """
    dataset = open_dataset(target)
    images = EvaluationSet(dataset=target, held_out=held_out)
    embedding = features_step(session, model, images, config.model, name=name)
    step = Step(
        title=f"evaluate {name} on {dataset.name}",
        store=session.store,
        kind="metrics",
        name=f"{name}-on-{dataset.name}",
        format_version=formats.METRICS,
        settings={"evaluation": config.evaluation.model_dump(mode="json")},
        inputs={Role.FEATURES: [embedding.artifact]},
        facts={**(facts or {}), "method": name, "target": dataset.name, "held_out": held_out},
    )
    # Finished metrics need no features, which are intermediate and may have been deleted.
    features = None
    if step.manifest() is None:
        features = embed(session, embedding, model, images, config.model)

    def work(_: object) -> dict[str, Any]:
        from workflows.runtime.cluster import ray_cluster
        from workflows.steps.rank import FeatureParts
        from workflows.steps.score import rank_and_score

        with ray_cluster():
            parts = FeatureParts(embedding.artifact)
            scores = rank_and_score(
                images, parts, step.artifact, config.evaluation, promised=_promised(model)
            )
            return scores.as_json()

    def log(run: Run, summary: dict[str, Any]) -> None:
        from workflows.steps.pictures import draw

        scores = Scores.from_json(summary)
        run.set_tags({"target": dataset.name, "method": name})
        on = used_dataset(target)
        run.log_datasets(on, context="held out" if held_out else "evaluation")
        run.log_metrics(
            score_metrics(dataset.name, scores),
            model_id=run.log_model(used_model(model), made=False),
            dataset=on,
        )
        draw(run, model, images, step.artifact, scores, method=name)

    result = run_step(step, session=session, work=work, log=log)
    return Evaluation(
        scores=Scores.from_json(result.summary),
        seconds=(features.seconds if features else 0.0) + result.seconds,
        computed=result.computed,
    )


def _promised(model: str) -> dict[float, float]:
    """False-accept rate -> threshold, as the model's calibration says; empty without one."""
    if model.startswith(UNTRAINED):
        return {}
    stored = model_description(open_artifact(model))["metadata"].get(CALIBRATION)
    return {} if stored is None else Calibration.from_json(stored).thresholds


def evaluate_file(session: Session, file: Path, config: ExperimentConfig) -> Evaluation:
    """Score features that any program wrote; see `muva.retrieval.features.read_features`."""
    from muva.retrieval.features import read_features
    from workflows.steps.score import score_features, scores_of

    features = read_features(file)
    session.check_tracking()  # ranking comes before the run is opened
    with track(f"rank for {len(features.queries)} queries of {file.name}") as progress:
        result = score_features(features, config.evaluation, progress=progress.update)
    scores = scores_of(features, config.evaluation, result)
    with file.open("rb") as stored:
        key = hashlib.file_digest(stored, "sha256").hexdigest()[:16]
    settings = {"file": str(file), "evaluation": config.evaluation.model_dump(mode="json")}
    with session.run(f"features {file.stem}", key=f"features-{key}", params=settings) as run:
        if run is not None:
            run.log_metrics(score_metrics(file.stem, scores))
    return Evaluation(scores=scores, seconds=0.0, computed=True)
