"""Scores of a ranking, by Ray tasks: of a data set's own split, or the means over its trials."""

from __future__ import annotations

import dataclasses
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from muva.config import EvaluationConfig
from muva.data.artifacts import Artifact
from muva.data.benchmarks.benchmark import Trial
from muva.data.protocols import read_trials
from muva.data.records import JUNK_PID
from muva.data.shards import open_dataset
from muva.retrieval.evaluation import evaluate
from muva.retrieval.features import Features
from muva.retrieval.metrics import RetrievalResult, score
from muva.retrieval.ranked_lists import ranked_lists
from muva.retrieval.reranking import Encodings, Reranking, compute_encodings
from muva.retrieval.results import Scores
from workflows.progress import track
from workflows.runtime.tasks import run_tasks
from workflows.steps.embed import EvaluationSet, image_labels
from workflows.steps.rank import FeatureParts, encodings_by_tasks, ranks_of

CURVE_RANKS = tuple(range(1, 51))
SHOWN_QUERIES = 8
SHOWN_MATCHES = 10
_PER_QUERY = "per-query.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryScores:
    """The results that are kept for each query."""

    query: np.ndarray
    """(queries,): indices into the evaluation set; with several trials, those of the first one."""
    gallery: np.ndarray
    """(gallery,): indices into the evaluation set."""
    average_precision: np.ndarray
    """(queries,), NaN without a match."""
    first_match_rank: np.ndarray
    """(queries,), 0 without a match."""
    lists: np.ndarray
    """(shown queries, ranks): the first images in the ranked lists of `shown_numbers`, as indices
    into `gallery`; -1 beyond the end of the gallery."""

    @property
    def list_of(self) -> dict[int, np.ndarray]:
        """Query -> its ranked list, for the queries that have one."""
        numbers = shown_numbers(self.average_precision)
        return {int(number): row[row >= 0] for number, row in zip(numbers, self.lists, strict=True)}

    def write(self, metrics: Artifact) -> None:
        """Write them to an artifact of metrics."""
        buffer = io.BytesIO()
        np.savez(buffer, **dataclasses.asdict(self))
        metrics.store.write(metrics.key(_PER_QUERY), buffer.getvalue())

    @classmethod
    def read(cls, metrics: Artifact) -> QueryScores:
        """Read what `write` has written."""
        with np.load(metrics.store.path(metrics.key(_PER_QUERY))) as arrays:
            return cls(**arrays)


def shown_queries(average_precision: np.ndarray) -> dict[str, np.ndarray]:
    """The queries of the two pictures: evenly spaced from best to worst, and the worst ones."""
    valid = np.flatnonzero(~np.isnan(average_precision))
    by_precision = valid[np.argsort(-average_precision[valid], kind="stable")]
    count = min(SHOWN_QUERIES, len(valid))
    return {
        "ranked-gallery": by_precision[np.linspace(0, len(valid) - 1, count).astype(int)],
        "worst-queries": by_precision[::-1][:count],
    }


def shown_numbers(average_precision: np.ndarray) -> np.ndarray:
    """The queries of all pictures, in ascending order."""
    return np.unique(np.concatenate([*shown_queries(average_precision).values()]))


def rank_and_score(
    images: EvaluationSet,
    parts: FeatureParts,
    metrics: Artifact,
    config: EvaluationConfig,
    *,
    promised: Mapping[float, float],
) -> Scores:
    """Rank and score; the results of each query go to `metrics`. Needs a Ray cluster.

    `promised` are the thresholds of the model's calibration, if it has one.
    """
    labels = image_labels(images.rows())
    trials = [] if images.held_out else read_trials(open_dataset(images.dataset))
    if trials:
        [(scores, kept)] = run_tasks(score_trials, [(parts, labels, trials, config)])
        kept.write(metrics)
        return scores
    rerank: Encodings | bool = False
    if config.rerank:
        with track(f"find the neighbours of {len(labels)} images") as progress:
            rerank = encodings_by_tasks(
                parts, labels, settings=Reranking(), on_progress=progress.update
            )
    with track(f"rank for {len(labels.queries)} queries") as progress:
        ranks, rule, verification = ranks_of(
            parts,
            labels,
            encodings=rerank or None,
            promised=promised,
            on_progress=progress.update,
        )
    result = score(ranks, rule, ranks=_reported_ranks(config), verification=verification)
    [kept] = run_tasks(query_scores, [(parts, labels, result, rerank)])
    kept.write(metrics)
    return scores_of(labels, config, result)


def query_scores(
    parts: FeatureParts, labels: Features, result: RetrievalResult, rerank: Encodings | bool
) -> QueryScores:
    """The results of each query of a data set's own split."""
    query, gallery = labels.queries, labels.gallery
    return _with_lists(parts, labels, result, rerank, query=query, gallery=gallery)


def _with_lists(
    parts: FeatureParts,
    labels: Features,
    result: RetrievalResult,
    rerank: Encodings | bool,
    *,
    query: np.ndarray,
    gallery: np.ndarray,
) -> QueryScores:
    """The scores of each query, and the ranked lists of the queries in pictures."""
    numbers = shown_numbers(result.average_precision)
    shown = labels.select(query=query[numbers], gallery=gallery)
    inputs: dict[str, Any] = shown.retrieval_inputs() | {
        "query_features": parts.read(query[numbers]),
        "gallery_features": parts.read(gallery),
    }
    if isinstance(rerank, Encodings):
        rerank = rerank.of_queries(numbers)
    return QueryScores(
        query=query,
        gallery=gallery,
        average_precision=result.average_precision,
        first_match_rank=result.first_match_rank,
        lists=ranked_lists(**inputs, top=SHOWN_MATCHES, rerank=rerank).indices,
    )


def score_trials(
    parts: FeatureParts, labels: Features, trials: Sequence[Trial], config: EvaluationConfig
) -> tuple[Scores, QueryScores]:
    """The means over the trials, and the results of each query of the first trial."""
    # Data sets with trials are small.
    embedded = dataclasses.replace(labels, features=parts.read(np.arange(len(labels))))
    index_of = {image_id: index for index, image_id in enumerate(embedded.ids.tolist())}
    every, kept = [], []
    for trial in trials:
        query, gallery = (
            np.array([index_of[i] for i in ids if i in index_of])
            for ids in (trial.query, trial.gallery)
        )
        chosen = embedded.select(query=query, gallery=gallery)
        rerank = _encodings(chosen) if config.rerank else False
        result = score_features(chosen, config, rerank=rerank)
        every.append(scores_of(chosen, config, result))
        if not kept:
            kept.append(_with_lists(parts, labels, result, rerank, query=query, gallery=gallery))
    return mean_scores(every), kept[0]


def mean_scores(every: Sequence[Scores]) -> Scores:
    """The means over several trials, without results that have no mean."""

    def mean(name: str) -> float:
        return statistics.fmean(getattr(one, name) for one in every)

    def mean_at(name: str) -> dict[int, float]:
        return {
            rank: statistics.fmean(getattr(one, name)[rank] for one in every)
            for rank in getattr(every[0], name)
        }

    return dataclasses.replace(
        every[0],
        mean_ap=mean("mean_ap"),
        mean_inp=mean("mean_inp"),
        cmc=mean_at("cmc"),
        curve=mean_at("curve"),
        queries=round(mean("queries")),
        valid_queries=round(mean("valid_queries")),
        gallery=round(mean("gallery")),
        trials=len(every),
        intervals={},
        camera_pairs=(),
        verification=None,
    )


def scores_of(features: Features, config: EvaluationConfig, result: RetrievalResult) -> Scores:
    """The scores of a ranking, without the results of each query."""
    return Scores(
        mean_ap=result.mean_ap,
        mean_inp=result.mean_inp,
        cmc={rank: result.cmc[rank] for rank in config.ranks},
        curve={rank: result.cmc[rank] for rank in CURVE_RANKS},
        queries=len(features.queries),
        valid_queries=result.valid_queries,
        gallery=len(features.gallery),
        cameras_known=features.camids is not None,
        reranked=config.rerank,
        trials=0,
        intervals={
            name: interval
            for name, interval in (
                ("mean_ap", result.mean_ap_interval),
                ("rank1", result.rank1_interval),
            )
            if interval is not None
        },
        camera_pairs=result.camera_pairs,
        verification=result.verification,
    )


def score_features(
    features: Features,
    config: EvaluationConfig,
    *,
    rerank: Encodings | bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """CMC at the ranks of the settings and as a curve, mAP and mINP, computed in this process."""
    return evaluate(
        **features.retrieval_inputs(),
        ranks=_reported_ranks(config),
        rerank=config.rerank if rerank is None else rerank,
        progress=progress,
    )


def _encodings(features: Features) -> Encodings:
    inputs = features.retrieval_inputs()
    return compute_encodings(
        inputs["query_features"],
        inputs["gallery_features"],
        excluded=np.flatnonzero(inputs["gallery_pids"] == JUNK_PID),
        settings=Reranking(),
    )


def _reported_ranks(config: EvaluationConfig) -> list[int]:
    return sorted({*config.ranks, *CURVE_RANKS})
