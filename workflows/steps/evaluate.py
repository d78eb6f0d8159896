"""`muva evaluate`: how well a model recognises people in camera networks that it has not seen.

Ray tasks embed a target's images part by part; a part that is written is never computed again. The
ranking is exact and bounded in memory, in tasks that share the gallery.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.config import ExperimentConfig
from muva.data.artifacts import Artifact, fingerprint
from muva.data.shards import open_dataset
from muva.retrieval.features import read_features
from muva.retrieval.scores import CameraPair, Interval
from tracking.names import retrieval_metrics
from workflows.progress import track
from workflows.runtime.cluster import ray_cluster
from workflows.session import Session
from workflows.steps.embed import Judged, features_step
from workflows.steps.pictures import draw
from workflows.steps.rank import FeatureParts
from workflows.steps.run_lineage import used_dataset, used_model
from workflows.steps.score import score_features, scored, summary_of
from workflows.steps.step import Step, do_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

METRICS_FORMAT = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What a model reached on a target; fractions."""

    mean_ap: float
    mean_inp: float
    cmc: dict[int, float]
    """At the ranks that the settings name."""
    curve: dict[int, float]
    """At every rank up to 50."""
    queries: int
    valid_queries: int
    """Those with a match in the gallery; the others count in no number."""
    cameras_known: bool
    """Otherwise each query ignored its own image alone."""
    trials: int
    """Random splits that all figures are means over; 0: there is one, the data set's own."""
    intervals: dict[str, Interval]
    """Of `mean_ap` and `rank1`, 95 %, over the people asked for; none with trials."""
    camera_pairs: tuple[CameraPair, ...]
    """None where cameras are unknown, and with trials."""
    seconds: float

    @property
    def rank1(self) -> float:
        """Share of queries whose nearest image shows the same person."""
        return self.curve[1]


def evaluate_on(
    session: Session,
    model: str,
    target: Artifact,
    config: ExperimentConfig,
    *,
    name: str,
    held_out: bool = False,
) -> TargetReport:
    """Embeds a target with a model (a URI, or `clip:NAME`) and scores the ranking.

    `held_out`: judge on the training images of a source that the model was not trained on, its
    queries drawn from them; no image of any target is read.
    """
    dataset = open_dataset(target)
    judged = Judged(dataset=target, held_out=held_out)
    features = features_step(session, model, judged, config.model, name=name)
    settings = {"evaluation": config.evaluation.model_dump(mode="json")}
    artifact = Artifact(
        session.store,
        "metrics",
        f"{name}-on-{dataset.name}",
        fingerprint([settings, features.artifact.fingerprint, METRICS_FORMAT]),
    )

    def work(_: object) -> dict[str, Any]:
        with ray_cluster():
            return scored(judged, FeatureParts(features.artifact), artifact, config.evaluation)

    def report(run: Run, summary: dict[str, Any]) -> None:
        found = _target_report(summary, seconds=0)
        run.set_tags({"target": dataset.name, "method": name})
        on = used_dataset(target)
        run.log_datasets(on, context="held out" if held_out else "evaluation")
        run.log_metrics(
            retrieval_metrics(
                dataset.name, mean_ap=found.mean_ap, cmc=found.cmc, mean_inp=found.mean_inp
            ),
            model_id=run.log_model(used_model(model), made=False),
            dataset=on,
        )
        draw(run, model, judged, artifact, found.camera_pairs)

    step = Step(
        label=f"evaluate {name} on {dataset.name}",
        artifact=artifact,
        format_version=METRICS_FORMAT,
        config=settings,
        inputs={"features": features.artifact.address},
    )
    done = do_step(step, session=session, work=work, report=report)
    return _target_report(done.summary, seconds=features.seconds + done.seconds)


def _target_report(summary: Mapping[str, Any], *, seconds: float) -> TargetReport:
    return TargetReport(
        mean_ap=summary["mean_ap"],
        mean_inp=summary["mean_inp"],
        cmc={int(rank): value for rank, value in summary["cmc"].items()},
        curve={int(rank): value for rank, value in summary["curve"].items()},
        queries=summary["queries"],
        valid_queries=summary["valid_queries"],
        cameras_known=summary["cameras_known"],
        trials=summary["trials"],
        intervals={name: Interval(**found) for name, found in summary["intervals"].items()},
        camera_pairs=tuple(CameraPair(**pair) for pair in summary["camera_pairs"]),
        seconds=seconds,
    )


def evaluate_file(session: Session, file: Path, config: ExperimentConfig) -> TargetReport:
    """Scores features that any program wrote; see `muva.retrieval.features.read_features`."""
    features = read_features(file)
    with track(f"rank for {len(features.queries)} queries of {file.name}") as progress:
        found = score_features(features, config.evaluation, progress=progress.update)
    summary = summary_of(features, config.evaluation, found)
    report = _target_report(summary, seconds=0)
    with file.open("rb") as stored:
        key = hashlib.file_digest(stored, "sha256").hexdigest()[:16]
    settings = {"file": str(file), "evaluation": config.evaluation.model_dump(mode="json")}
    with session.run(f"features {file.stem}", key=f"features-{key}", params=settings) as run:
        if run is not None:
            run.log_metrics(
                retrieval_metrics(
                    file.stem, mean_ap=report.mean_ap, cmc=report.cmc, mean_inp=report.mean_inp
                )
            )
    return report
