"""CMC, mAP, mINP, camera pairs and confidence intervals from the ranks of the matches.

A new metric is added here, as a field of `RetrievalResult`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule
from muva.retrieval.distances import even_slices
from muva.retrieval.match_ranks import MatchRanks
from muva.retrieval.results import MIN_IDENTITIES, CameraPair, Interval, Verification

BOOTSTRAP_RESAMPLES, CONFIDENCE = 1000, 0.95
"""See Efron and Tibshirani, An Introduction to the Bootstrap, 1993, Sec. 13.3."""

_COUNTS_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Metrics as fractions; a query without a match is left out of all of them."""

    mean_ap: float
    cmc: dict[int, float]
    """Rank -> share of valid queries with a match at or before that rank."""
    mean_inp: float
    """Mean over valid queries of matches / rank of the last match (Ye et al., TPAMI 2021)."""
    average_precision: np.ndarray
    """(queries,) float64, NaN if a query has no match."""
    first_match_rank: np.ndarray
    """(queries,) int64 from 1, 0 if a query has no match."""
    valid_queries: int
    mean_ap_interval: Interval | None
    """None with fewer than `MIN_IDENTITIES`, as is that of rank-1."""
    rank1_interval: Interval | None
    camera_pairs: tuple[CameraPair, ...]
    """Sorted by query camera, then gallery camera; empty if cameras are unknown."""
    verification: Verification | None
    """None if all images that count show the same person."""


def score(
    ranking: MatchRanks,
    rule: CameraRule,
    *,
    ranks: Sequence[int],
    verification: Verification | None = None,
) -> RetrievalResult:
    """The metrics of a ranking. Raises MuvaError if no query has a match.

    The intervals are percentiles of a bootstrap over identities: all queries of an identity are
    drawn together.
    """
    query = rule.query
    counts = np.diff(ranking.start)
    valid = counts > 0
    if not valid.any():
        raise MuvaError(
            f"none of the {len(query)} queries has a match among the gallery images that "
            "count under the camera rule. Are query and gallery from the same data set, and are "
            "the camera ids correct?"
        )
    average_precision = np.full(len(query), np.nan)
    average_precision[valid] = _average_precision(ranking.ranks, counts[valid])
    first, last = ranking.start[:-1][valid], ranking.start[1:][valid] - 1
    first_match_rank = np.zeros(len(query), np.int64)
    first_match_rank[valid] = ranking.ranks[first]
    pids = query.pids[valid]
    return RetrievalResult(
        mean_ap=float(average_precision[valid].mean()),
        cmc={int(rank): float((first_match_rank[valid] <= rank).mean()) for rank in ranks},
        mean_inp=float((counts[valid] / ranking.ranks[last]).mean()),
        average_precision=average_precision,
        first_match_rank=first_match_rank,
        valid_queries=int(valid.sum()),
        mean_ap_interval=bootstrap_interval(average_precision[valid], pids),
        rank1_interval=bootstrap_interval(first_match_rank[valid] == 1, pids),
        camera_pairs=_camera_pairs(ranking, rule) if rule.knows_cameras else (),
        verification=verification,
    )


def bootstrap_interval(values: np.ndarray, groups: np.ndarray) -> Interval | None:
    """Confidence interval of the mean when whole groups are resampled; deterministic.

    None with fewer than `MIN_IDENTITIES` groups, from which it would be far too narrow.
    """
    distinct, group = np.unique(groups, return_inverse=True)
    if len(distinct) < MIN_IDENTITIES:
        return None
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    rng = np.random.default_rng(0)
    uniform = np.full(len(sums), 1 / len(sums))
    means = np.empty(BOOTSTRAP_RESAMPLES)
    for some in even_slices(BOOTSTRAP_RESAMPLES, _COUNTS_AT_ONCE // len(sums)):
        drawn = rng.multinomial(len(sums), uniform, size=some.stop - some.start)
        means[some] = drawn @ sums / (drawn @ sizes)
    return percentile_interval(means)


def percentile_interval(resampled: np.ndarray) -> Interval:
    """The confidence interval of a statistic, given its values in the resamples."""
    low, high = np.quantile(resampled, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(low=float(low), high=float(high))


def _average_precision(ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The average precision of consecutive groups of ascending ranks; no group is empty."""
    starts = np.cumsum(counts) - counts
    matches_so_far = np.arange(len(ranks)) - np.repeat(starts, counts) + 1
    return np.add.reduceat(matches_so_far / ranks, starts) / counts


def _camera_pairs(ranking: MatchRanks, rule: CameraRule) -> tuple[CameraPair, ...]:
    assert rule.query.camids is not None
    query_of_match = np.repeat(np.arange(len(rule.query)), np.diff(ranking.start))
    order = np.lexsort((ranking.within, ranking.cameras, query_of_match))
    query_of_match, cameras, within = (
        query_of_match[order],
        ranking.cameras[order],
        ranking.within[order],
    )
    new = np.concatenate([[True], (np.diff(query_of_match) != 0) | (np.diff(cameras) != 0)])
    starts = np.flatnonzero(new)
    precision = _average_precision(within, np.diff(np.append(starts, len(query_of_match))))
    hit = within[starts] == 1
    camera_pairs_of = np.stack([rule.query.camids[query_of_match[starts]], cameras[starts]])
    pairs, pair_of = np.unique(camera_pairs_of, axis=1, return_inverse=True)
    sizes = np.bincount(pair_of)
    precisions, hits = (np.bincount(pair_of, weights=w) / sizes for w in (precision, hit))
    return tuple(
        CameraPair(
            query_camid=int(query_camid),
            gallery_camid=int(rule.camids[camera]),
            mean_ap=float(precisions[index]),
            rank1=float(hits[index]),
            queries=int(sizes[index]),
        )
        for index, (query_camid, camera) in enumerate(pairs.T)
    )
