"""`muva evaluate`: how well a model recognises people in camera networks that it has not seen.

Ray tasks embed a target's images part by part; a part that is written is never computed again. The
ranking is exact and bounded in memory, in tasks that share the gallery.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

import muva
from muva.config import ExperimentConfig, load_recipe
from muva.data.artifacts import Artifact, fingerprint
from muva.data.shards import open_dataset
from muva.model.clip import check_clip
from muva.models import find_model
from muva.retrieval.features import read_features
from muva.retrieval.scores import CameraPair, Interval
from tracking.names import retrieval_metrics
from workflows.cluster import ray_cluster
from workflows.data import datasets_of
from workflows.embedding import UNTOUCHED, Judged, features_step
from workflows.evaluation_pictures import draw
from workflows.lineage import used_dataset, used_model
from workflows.progress import as_text, say, track
from workflows.ranking import FeatureParts
from workflows.scoring import score_features, scored, summary_of
from workflows.session import (
    NAMES,
    Session,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)
from workflows.steps import Step, do_step

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
        run.tags({"target": dataset.name, "method": name})
        on = used_dataset(target)
        run.used(on, context="held out" if held_out else "evaluation")
        run.metrics(
            retrieval_metrics(
                dataset.name, mean_ap=found.mean_ap, cmc=found.cmc, mean_inp=found.mean_inp
            ),
            model_id=run.model(used_model(model), made=False),
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


def results_table(reports: Mapping[str, TargetReport], *, title: str) -> Table:
    """A line per target, in per cent."""
    table = Table(title=title)
    table.add_column("target")
    for column in ("mAP", "95 %", "rank-1", "95 %", "rank-5", "rank-10", "mINP"):
        table.add_column(column, justify="right")
    for target, found in reports.items():
        values = (found.mean_ap, *(found.curve[rank] for rank in (1, 5, 10)), found.mean_inp)
        mean_ap, rank1, *rest = (f"{100 * value:.1f}" for value in values)
        intervals = [_between(found.intervals.get(name)) for name in ("mean_ap", "rank1")]
        table.add_row(target, mean_ap, intervals[0], rank1, intervals[1], *rest)
    return table


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


@click.command("evaluate")
@click.argument("model", required=False)
@click.option("--targets", type=NAMES, help="Data sets to judge on.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Instead of a model: a .parquet or .npz of features that any program wrote.",
)
@recipe_option
@override_option
@json_option
@session_options
def evaluate_verb(
    model: str | None,
    targets: tuple[str, ...] | None,
    features: Path | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Judge MODEL on target domains.

    MODEL is a name in the store, a URI, or clip:NAME for a CLIP as it is. A features file holds
    features, ids, pids and, where known, camids and split (query, gallery).

    \b
    muva evaluate muva --targets syn-station
    muva evaluate clip:tiny --targets syn-station --recipe demo
    muva evaluate --features features.parquet
    """
    config = load_recipe(recipe, overrides=overrides)
    if (features is None) == (model is None):
        raise click.UsageError("Expected either a MODEL with --targets, or --features FILE.")
    if features is not None and targets:
        raise click.UsageError("--targets are for a MODEL; a features file is its own target.")
    if features is not None:
        reports = {features.stem: _judge_file(session, features, config)}
        title = f"Features in {features}"
    else:
        assert model is not None
        if not targets:
            raise click.UsageError("--targets is missing: which data sets is the model judged on?")
        reports, title = _judge_model(session, model, targets, config)
    for target, found in reports.items():
        if not found.cameras_known:
            say(f"{target}: cameras are unknown, so each query ignored only its own image.")
    print_result(
        {target: dataclasses.asdict(found) for target, found in reports.items()},
        as_json=as_json,
        text=as_text(results_table(reports, title=title)),
    )


def _judge_model(
    session: Session, model: str, targets: Sequence[str], config: ExperimentConfig
) -> tuple[dict[str, TargetReport], str]:
    uri, name = model, UNTOUCHED.rstrip(":")
    if model.startswith(UNTOUCHED):
        check_clip(model.removeprefix(UNTOUCHED))
    else:
        artifact = find_model(session.store, model)
        uri, name = artifact.uri, artifact.name
        bundle = muva.load(uri)
        config = config.model_copy(update={"model": bundle.model.config})
        learned = {source.rpartition("-")[0] for source in bundle.metadata.get("sources", ())}
        for seen in learned.intersection(targets):
            say(f"{seen} is a source of this model: its figures are not those of an unseen domain.")
    with ray_cluster():
        datasets = datasets_of(session, targets, config.synthetic)
        reports = {
            target: evaluate_on(session, uri, done.artifact, config, name=name)
            for target, done in datasets.items()
        }
    return reports, f"Judged: {uri}"


def _judge_file(session: Session, file: Path, config: ExperimentConfig) -> TargetReport:
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
            run.metrics(
                retrieval_metrics(
                    file.stem, mean_ap=report.mean_ap, cmc=report.cmc, mean_inp=report.mean_inp
                )
            )
    return report
