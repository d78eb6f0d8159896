"""`muva evaluate`: how well a model recognises people in camera networks that it has not seen.

Ray tasks embed a target's images part by part; a part that is written is never computed again. The
ranking is exact and bounded in memory, in tasks that share the gallery.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image
from rich.table import Table

import muva
from muva.config import EvaluationConfig, ExperimentConfig, ModelConfig, load_recipe
from muva.data.artifacts import Artifact, fingerprint, open_artifact
from muva.data.benchmarks.benchmark import Trial
from muva.data.images import decode_rgb
from muva.data.protocols import query_gallery, read_trials
from muva.data.shards import open_dataset
from muva.errors import MuvaError
from muva.model.bundle import Bundle, Embedder, untouched_clip
from muva.model.clip import check_clip
from muva.models import find_model
from muva.retrieval.features import Features, read_features
from muva.retrieval.metrics import evaluate as evaluate_ranking
from muva.retrieval.ranked_lists import ranked_lists
from muva.retrieval.scores import CameraPair, Interval, RetrievalResult, score
from tracking.heat_map import heat_map
from tracking.names import retrieval_metrics
from tracking.pictures import Person, RankedQuery, part_mask_sheet, ranked_gallery
from workflows.board import Board, gather, results
from workflows.cluster import ANYWHERE, gpus, ray_cluster
from workflows.data import datasets_of
from workflows.progress import as_text, say, track
from workflows.ranking import FEATURES_FORMAT, PART_IMAGES, FeatureParts, ranks_of
from workflows.session import (
    NAMES,
    Session,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)
from workflows.steps import Done, Step, do_step

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

METRICS_FORMAT = 2
UNTOUCHED = "clip:"
"""Before a CLIP's name: the model is that CLIP as it is."""

CURVE_RANKS = tuple(range(1, 51))
PER_QUERY = "per-query.npz"
SHOWN_QUERIES = 8
SHOWN_MATCHES = 10
SHOWN_MASKS = 12


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
    judged = _Judged(dataset=target, held_out=held_out)
    features = _features_step(session, model, judged, config.model, name=name)
    settings = {"evaluation": config.evaluation.model_dump(mode="json")}
    artifact = Artifact(
        session.store,
        "metrics",
        f"{name}-on-{dataset.name}",
        fingerprint([settings, features.artifact.fingerprint, METRICS_FORMAT]),
    )

    def work(_: object) -> dict[str, Any]:
        with ray_cluster():
            return _scored(judged, FeatureParts(features.artifact), artifact, config.evaluation)

    def report(run: Run, summary: dict[str, Any]) -> None:
        found = _target_report(summary, seconds=0)
        run.tags({"target": dataset.name, "method": name})
        run.metrics(
            retrieval_metrics(
                dataset.name, mean_ap=found.mean_ap, cmc=found.cmc, mean_inp=found.mean_inp
            )
        )
        if found.camera_pairs:
            figure = heat_map(
                {
                    (str(pair.query_camid), str(pair.gallery_camid)): pair.mean_ap
                    for pair in found.camera_pairs
                },
                title=f"mAP between cameras of {dataset.name}, per cent",
                rows="query's camera",
                columns="gallery's camera",
                order=_in_order(found.camera_pairs),
            )
            run.figure("camera-pairs.png", figure)
        _draw(run, model, judged, features.artifact, artifact, config)

    step = Step(
        label=f"evaluate {name} on {dataset.name}",
        artifact=artifact,
        format_version=METRICS_FORMAT,
        config=settings,
        inputs={"features": features.artifact.address},
    )
    done = do_step(step, session=session, work=work, report=report)
    return _target_report(done.summary, seconds=features.seconds + done.seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Judged:
    """The images that a model is judged on."""

    dataset: Artifact
    held_out: bool

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train",) if self.held_out else ("query", "gallery")

    def rows(self) -> pa.Table:
        """Every judged image: image_id, pid, camid, split (query or gallery), row."""
        dataset = open_dataset(self.dataset)
        rows = dataset.rows(["image_id", "pid", "camid", "split"], splits=self.splits)
        if not len(rows):
            raise MuvaError(
                f"{dataset.name}: expected images in {' and '.join(self.splits)}, found none (it "
                f"has {', '.join(dataset.summary.splits)}): is it a data set to test on?"
            )
        return query_gallery(rows) if self.held_out else rows

    def images(self, rows: np.ndarray) -> list[Image.Image]:
        """The images of the data set's rows of these numbers."""
        encoded = open_dataset(self.dataset).read_images(rows)
        return [decode_rgb(image) for image in encoded]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Images that one task embeds: some of the judged ones, which follow each other."""

    first: int
    """Place of its first image among the judged ones."""
    rows: np.ndarray
    """Numbers of the data set's rows: no task reads the rows of all others."""


def _features_step(
    session: Session, model: str, judged: _Judged, config: ModelConfig, *, name: str
) -> Done:
    dataset = open_dataset(judged.dataset)
    settings = {"model": _model_settings(model, config), "splits": judged.splits}
    artifact = Artifact(
        session.store,
        "features",
        f"{dataset.name}-by-{name}",
        fingerprint([settings, dataset.name, dataset.fingerprint, FEATURES_FORMAT]),
    )

    def work(_: object) -> dict[str, Any]:
        rows = judged.rows()["row"].to_numpy()
        count = len(rows)
        parts = [
            _Part(first=first, rows=rows[first : first + PART_IMAGES])
            for first in range(0, count, PART_IMAGES)
        ]
        waiting = [
            part
            for part in parts
            if not artifact.store.exists(artifact.key(FeatureParts.name(part.first)))
        ]
        done = count - sum(len(part.rows) for part in waiting)
        with ray_cluster(), track(f"embed {dataset.name} by {name}") as progress:
            board = Board()

            def show(images: int) -> None:
                nonlocal done
                done += images
                progress.update(done, count)

            embed = _embed.options(num_gpus=min(1, gpus()))
            tasks = [embed.remote(model, config, judged, p, artifact, board) for p in waiting]
            gather(tasks, board=board, on_message=show)
        return {"images": count}

    inputs = {"dataset": judged.dataset.address}
    if not model.startswith(UNTOUCHED):
        inputs["model"] = open_artifact(model).address
    step = Step(
        label=f"embed {dataset.name} by {name}",
        artifact=artifact,
        format_version=FEATURES_FORMAT,
        config=settings,
        inputs=inputs,
    )
    # Features are a means: the run of the evaluation that uses them tells all there is to tell.
    return do_step(step, session=dataclasses.replace(session, tracking_uri=None), work=work)


def _model_settings(model: str, config: ModelConfig) -> Any:
    """What the features depend on besides the images."""
    if not model.startswith(UNTOUCHED):
        return open_artifact(model).address
    return [model, config.image_height, config.image_width, config.stride]


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _embed(
    model: str,
    config: ModelConfig,
    judged: _Judged,
    part: _Part,
    artifact: Artifact,
    board: Board,
) -> None:
    """Embeds and writes one part."""
    torch.set_num_threads(1)  # as many as the task has cores: sums depend on it
    images = judged.images(part.rows)
    embedder = _open_embedder(model, config.image_height, config.image_width, config.stride)
    FeatureParts(artifact).write(part.first, embedder.embed(images))
    board.post(len(images))


@functools.lru_cache(maxsize=2)
def _open_embedder(model: str, height: int, width: int, stride: int) -> Embedder:
    """The model, kept for the next task of this process; sizes are for a CLIP as it is."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not model.startswith(UNTOUCHED):
        return muva.load(model).to(device)
    return untouched_clip(
        model.removeprefix(UNTOUCHED),
        image_height=height,
        image_width=width,
        stride=stride,
    ).to(device)


def _scored(
    judged: _Judged, parts: FeatureParts, metrics: Artifact, config: EvaluationConfig
) -> dict[str, Any]:
    """Ranks and scores; writes each query's values, returns the summary."""
    who = _people_of(judged.rows())
    trials = [] if judged.held_out else read_trials(open_dataset(judged.dataset))
    asking, answering = who.queries, who.gallery
    if trials:
        [(summary, found, asking, answering)] = results(
            [_score_trials.remote(parts, who, trials, config)]
        )
    else:
        if config.rerank:
            [found] = results([_score_whole.remote(parts, who, config)])
        else:
            with track(f"rank for {len(asking)} queries") as progress:
                ranks, rule = ranks_of(parts, who, tell=progress.update)
            found = score(ranks, rule, ranks=_ranks_told(config))
        summary = summary_of(who, config, found)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        query=asking,
        gallery=answering,
        average_precision=found.average_precision,
        first_match_rank=found.first_match_rank,
    )
    metrics.store.write(metrics.key(PER_QUERY), buffer.getvalue())
    return summary


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _score_whole(parts: FeatureParts, who: Features, config: EvaluationConfig) -> RetrievalResult:
    """Re-ranking compares all images with all: nothing can be shared out."""
    return score_features(_with_features(parts, who), config)


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _score_trials(
    parts: FeatureParts, who: Features, trials: Sequence[Trial], config: EvaluationConfig
) -> tuple[dict[str, Any], RetrievalResult, np.ndarray, np.ndarray]:
    """The means over the trials, and the first one: its result, its queries and its gallery."""
    embedded = _with_features(parts, who)  # of few images, where there are trials
    place = {image_id: index for index, image_id in enumerate(embedded.ids.tolist())}
    every = []
    for trial in trials:
        query, gallery = (
            np.array([place[i] for i in ids if i in place]) for ids in (trial.query, trial.gallery)
        )
        chosen = embedded.chosen(query=query, gallery=gallery)
        found = score_features(chosen, config)
        every.append((summary_of(chosen, config, found), found, query, gallery))
    return (mean_summary([summary for summary, *_ in every]), *every[0][1:])


def mean_summary(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of several trials' results; what differs by trial alone is left out."""
    means = dict(every[0]) | {"trials": len(every), "intervals": {}, "camera_pairs": []}
    for name in ("mean_ap", "mean_inp", "queries", "valid_queries", "gallery"):
        means[name] = statistics.fmean(one[name] for one in every)
    for name in ("queries", "valid_queries", "gallery"):
        means[name] = round(means[name])
    for name in ("cmc", "curve"):
        means[name] = {
            rank: statistics.fmean(one[name][rank] for one in every) for rank in every[0][name]
        }
    return means


def _people_of(rows: pa.Table) -> Features:
    """Who is on the judged images, without features; cameras are left out where unknown."""
    camids = rows["camid"]
    return Features(
        features=np.empty((len(rows), 0), np.float32),
        ids=np.asarray(rows["image_id"].to_pylist()),
        pids=rows["pid"].to_numpy(),
        camids=None if camids.null_count else camids.to_numpy(),
        split=np.asarray(rows["split"].to_pylist()),
    )


def _with_features(parts: FeatureParts, who: Features) -> Features:
    return dataclasses.replace(who, features=parts.read(np.arange(len(who))))


def summary_of(
    features: Features, config: EvaluationConfig, found: RetrievalResult
) -> dict[str, Any]:
    """A result as plain data."""
    return {
        "mean_ap": found.mean_ap,
        "mean_inp": found.mean_inp,
        "cmc": {str(rank): found.cmc[rank] for rank in config.ranks},
        "curve": {str(rank): found.cmc[rank] for rank in CURVE_RANKS},
        "queries": len(features.queries),
        "valid_queries": found.valid_queries,
        "gallery": len(features.gallery),
        "cameras_known": features.camids is not None,
        "reranked": config.rerank,
        "trials": 0,
        "intervals": {
            "mean_ap": dataclasses.asdict(found.mean_ap_interval),
            "rank1": dataclasses.asdict(found.rank1_interval),
        },
        "camera_pairs": [dataclasses.asdict(pair) for pair in found.camera_pairs],
    }


def score_features(features: Features, config: EvaluationConfig) -> RetrievalResult:
    """CMC at the settings' ranks and along the curve, mAP, mINP."""
    return evaluate_ranking(
        **features.retrieval_inputs(), ranks=_ranks_told(config), rerank=config.rerank
    )


def _ranks_told(config: EvaluationConfig) -> list[int]:
    return sorted({*config.ranks, *CURVE_RANKS})


def _in_order(pairs: Sequence[CameraPair]) -> list[str]:
    """The cameras by their numbers."""
    return list(map(str, sorted({c for p in pairs for c in (p.query_camid, p.gallery_camid)})))


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


def _draw(
    run: Run,
    model: str,
    judged: _Judged,
    features: Artifact,
    metrics: Artifact,
    config: ExperimentConfig,
) -> None:
    """The pictures of an evaluation: ranked galleries, and where the model looks for parts."""
    rows = judged.rows()
    for name, sheet in _gallery_sheets(judged, rows, features, metrics, config).items():
        run.picture(f"{name}.png", sheet)
    if not model.startswith(UNTOUCHED):
        bundle = muva.load(model)
        if bundle.model.config.parts:
            run.picture("predicted-masks.png", _mask_sheet(judged, rows, bundle))


def _gallery_sheets(
    judged: _Judged, rows: pa.Table, features: Artifact, metrics: Artifact, config: ExperimentConfig
) -> dict[str, Image.Image]:
    """Queries from the best ranked to the worst, and the worst ones, with their first matches."""
    per_query = np.load(metrics.store.path(metrics.key(PER_QUERY)))
    precision = per_query["average_precision"]
    valid = np.flatnonzero(~np.isnan(precision))
    by_precision = valid[np.argsort(-precision[valid], kind="stable")]
    count = min(SHOWN_QUERIES, len(valid))
    shown = {
        "ranked-gallery": by_precision[np.linspace(0, len(valid) - 1, count).astype(int)],
        "worst-queries": by_precision[::-1][:count],
    }
    # Re-ranking looks at all queries; otherwise each is ranked for itself.
    asked = np.unique(np.concatenate([*shown.values()]))
    if config.evaluation.rerank:
        asked = np.arange(len(precision))
    query, gallery = per_query["query"][asked], per_query["gallery"]
    parts = FeatureParts(features)
    who = _people_of(rows).chosen(query=query, gallery=gallery)
    inputs: dict[str, Any] = who.retrieval_inputs() | {
        "query_features": parts.read(query),
        "gallery_features": parts.read(gallery),
    }
    ranked = ranked_lists(**inputs, top=SHOWN_MATCHES, rerank=config.evaluation.rerank)
    matches = {place: row[row >= 0] for place, row in zip(asked, ranked.indices, strict=True)}

    def people(places: np.ndarray) -> list[Person]:
        chosen = rows.take(places)
        return [
            Person(image=image, pid=pid, camid=camid)
            for image, pid, camid in zip(
                judged.images(chosen["row"].to_numpy()),
                chosen["pid"].to_pylist(),
                chosen["camid"].to_pylist(),
                strict=True,
            )
        ]

    told = {
        "ranked-gallery": (
            f"Ranked gallery, {open_dataset(judged.dataset).name}",
            "Queries from the best average precision to the worst, evenly spaced",
        ),
        "worst-queries": (
            f"Worst queries, {open_dataset(judged.dataset).name}",
            "Queries with the lowest average precision, the worst first",
        ),
    }
    sheets = {}
    for name, places in shown.items():
        queries = [
            RankedQuery(
                query=people(per_query["query"][[place]])[0],
                matches=people(gallery[matches[place]]),
                average_precision=float(precision[place]),
            )
            for place in places
        ]
        title, subtitle = told[name]
        sheets[name] = ranked_gallery(queries, title=title, subtitle=subtitle)
    return sheets


def _mask_sheet(judged: _Judged, rows: pa.Table, bundle: Bundle) -> Image.Image:
    """Some images under the masks that the last block's predictor gives."""
    chosen = rows.take(np.linspace(0, len(rows) - 1, min(SHOWN_MASKS, len(rows))).astype(int))
    images = judged.images(chosen["row"].to_numpy())
    masks = bundle.predicted_masks(images)
    return part_mask_sheet(
        images,
        {"predicted": masks},
        grid=bundle.model.grid,
        parts=bundle.model.config.parts,
        title=f"Predicted part masks, {open_dataset(judged.dataset).name}",
        captions=[f"{pid:04d}" for pid in chosen["pid"].to_pylist()],
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
    found = score_features(features, config.evaluation)
    summary = summary_of(features, config.evaluation, found)
    report = _target_report(summary, seconds=0)
    key = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    settings = {"file": str(file), "evaluation": config.evaluation.model_dump(mode="json")}
    with session.run(f"features {file.stem}", key=f"features-{key}", params=settings) as run:
        if run is not None:
            run.metrics(
                retrieval_metrics(
                    file.stem, mean_ap=report.mean_ap, cmc=report.cmc, mean_inp=report.mean_inp
                )
            )
    return report
