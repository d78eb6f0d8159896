"""The score of a ranking, by Ray tasks: of the one split that a data set has, or of its trials."""

from __future__ import annotations

import dataclasses
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from muva.config import EvaluationConfig
from muva.data.artifacts import Artifact
from muva.data.benchmarks.benchmark import Trial
from muva.data.protocols import read_trials
from muva.data.records import JUNK_PID
from muva.data.shards import open_dataset
from muva.retrieval.features import Features
from muva.retrieval.metrics import evaluate
from muva.retrieval.ranked_lists import ranked_lists
from muva.retrieval.reranking import Encodings, Reranking, compute_encodings
from muva.retrieval.scores import RetrievalResult, score
from workflows.progress import track
from workflows.runtime.cluster import ANYWHERE
from workflows.runtime.messages import results
from workflows.steps.embed import Judged, people_of
from workflows.steps.rank import FeatureParts, encodings_by_tasks, ranks_of

CURVE_RANKS = tuple(range(1, 51))
SHOWN_QUERIES = 8
SHOWN_MATCHES = 10
_PER_QUERY = "per-query.npz"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryScores:
    """What is kept of each query, beside a summary of all."""

    query: np.ndarray
    """(queries,): places among the judged images; with trials those of the first one."""
    gallery: np.ndarray
    """(gallery,): places likewise."""
    average_precision: np.ndarray
    """(queries,), NaN where there is no match."""
    first_match_rank: np.ndarray
    """(queries,), 0 where there is no match."""
    lists: np.ndarray
    """(shown queries, matches): what `shown_numbers` find first, by number in the gallery; -1
    where there is no more."""

    @property
    def list_of(self) -> dict[int, np.ndarray]:
        """Query -> its list, of those that have one."""
        numbers = shown_numbers(self.average_precision)
        return {int(number): row[row >= 0] for number, row in zip(numbers, self.lists, strict=True)}

    def write(self, metrics: Artifact) -> None:
        """Keep them in an artifact."""
        buffer = io.BytesIO()
        np.savez(buffer, **dataclasses.asdict(self))
        metrics.store.write(metrics.key(_PER_QUERY), buffer.getvalue())

    @classmethod
    def read(cls, metrics: Artifact) -> QueryScores:
        """Those that were kept."""
        with np.load(metrics.store.path(metrics.key(_PER_QUERY))) as arrays:
            return cls(**arrays)


def shown_queries(average_precision: np.ndarray) -> dict[str, np.ndarray]:
    """Queries to look at: from the best to the worst, evenly spaced; and the worst, worst first."""
    valid = np.flatnonzero(~np.isnan(average_precision))
    by_precision = valid[np.argsort(-average_precision[valid], kind="stable")]
    count = min(SHOWN_QUERIES, len(valid))
    return {
        "ranked-gallery": by_precision[np.linspace(0, len(valid) - 1, count).astype(int)],
        "worst-queries": by_precision[::-1][:count],
    }


def shown_numbers(average_precision: np.ndarray) -> np.ndarray:
    """All queries to look at, ascending."""
    return np.unique(np.concatenate([*shown_queries(average_precision).values()]))


def scored(
    judged: Judged, parts: FeatureParts, metrics: Artifact, config: EvaluationConfig
) -> dict[str, Any]:
    """Ranks and scores; writes each query's scores, returns the summary. Needs a Ray cluster."""
    who = people_of(judged.rows())
    trials = [] if judged.held_out else read_trials(open_dataset(judged.dataset))
    if trials:
        [(summary, kept)] = results([_score_trials.remote(parts, who, trials, config)])
        kept.write(metrics)
        return summary
    rerank: Encodings | bool = False
    if config.rerank:
        with track(f"find the neighbours of {len(who)} images") as progress:
            rerank = encodings_by_tasks(parts, who, settings=Reranking(), tell=progress.update)
    with track(f"rank for {len(who.queries)} queries") as progress:
        ranks, rule = ranks_of(parts, who, encodings=rerank or None, tell=progress.update)
    found = score(ranks, rule, ranks=_ranks_told(config))
    [kept] = results([_look.remote(parts, who, found, rerank)])
    kept.write(metrics)
    return summary_of(who, config, found)


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _look(
    parts: FeatureParts, who: Features, found: RetrievalResult, rerank: Encodings | bool
) -> QueryScores:
    return _with_lists(parts, who, found, rerank, query=who.queries, gallery=who.gallery)


def _with_lists(
    parts: FeatureParts,
    who: Features,
    found: RetrievalResult,
    rerank: Encodings | bool,
    *,
    query: np.ndarray,
    gallery: np.ndarray,
) -> QueryScores:
    """The scores of each query, and what the queries to look at find first."""
    numbers = shown_numbers(found.average_precision)
    shown = who.select(query=query[numbers], gallery=gallery)
    inputs: dict[str, Any] = shown.retrieval_inputs() | {
        "query_features": parts.read(query[numbers]),
        "gallery_features": parts.read(gallery),
    }
    if isinstance(rerank, Encodings):
        rerank = rerank.of_queries(numbers)
    return QueryScores(
        query=query,
        gallery=gallery,
        average_precision=found.average_precision,
        first_match_rank=found.first_match_rank,
        lists=ranked_lists(**inputs, top=SHOWN_MATCHES, rerank=rerank).indices,
    )


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _score_trials(
    parts: FeatureParts, who: Features, trials: Sequence[Trial], config: EvaluationConfig
) -> tuple[dict[str, Any], QueryScores]:
    """The means over the trials; and of the first one, what is kept of each query."""
    # Of few images, where there are trials.
    embedded = dataclasses.replace(who, features=parts.read(np.arange(len(who))))
    place = {image_id: index for index, image_id in enumerate(embedded.ids.tolist())}
    summaries, kept = [], []
    for trial in trials:
        query, gallery = (
            np.array([place[i] for i in ids if i in place]) for ids in (trial.query, trial.gallery)
        )
        chosen = embedded.select(query=query, gallery=gallery)
        rerank = _encodings(chosen) if config.rerank else False
        found = score_features(chosen, config, rerank=rerank)
        summaries.append(summary_of(chosen, config, found))
        if not kept:
            kept.append(_with_lists(parts, who, found, rerank, query=query, gallery=gallery))
    return mean_summary(summaries), kept[0]


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


def score_features(
    features: Features,
    config: EvaluationConfig,
    *,
    rerank: Encodings | bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """CMC at the settings' ranks and along the curve, mAP, mINP; in this process."""
    return evaluate(
        **features.retrieval_inputs(),
        ranks=_ranks_told(config),
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


def _ranks_told(config: EvaluationConfig) -> list[int]:
    return sorted({*config.ranks, *CURVE_RANKS})
