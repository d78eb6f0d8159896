"""CMC, mAP and mINP of a query set against a gallery, exactly and in bounded memory.

They depend only on the ranks of each query's true matches: a block of distances is computed, each
query's matches are located in it, and the block is forgotten. Ties go to the lower gallery index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule, Identifiers, Integers, labels
from muva.retrieval.distances import BLOCK_BYTES
from muva.retrieval.reranking import Reranking, ranking_blocks


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Fractions, all of them; a query without a match counts in none."""

    mean_ap: float
    cmc: dict[int, float]
    """Rank -> share of valid queries with a match among the first that many."""
    mean_inp: float
    """Mean over valid queries of matches / rank of the last match (Ye et al., TPAMI 2021)."""
    average_precision: np.ndarray
    """(queries,) float64, NaN where a query has no match."""
    first_match_rank: np.ndarray
    """(queries,) int64 from 1, 0 where a query has no match."""
    valid_queries: int


def evaluate(
    *,
    query_features: np.ndarray | Tensor,
    query_pids: Integers,
    query_camids: Integers | None,
    gallery_features: np.ndarray | Tensor,
    gallery_pids: Integers,
    gallery_camids: Integers | None,
    query_ids: Identifiers | None = None,
    gallery_ids: Identifiers | None = None,
    ranks: Sequence[int] = (1, 5, 10, 20),
    rerank: bool | Reranking = False,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """Rank the gallery for each query and score the ranking.

    Features are (images, width), normalised here; numpy arrays may be memory-mapped. Without camera
    ids a query ignores only the gallery image of its own id. `rerank` (True: the paper's settings)
    orders by k-reciprocal neighbours instead and holds all features in memory. Raises MuvaError for
    inputs that do not belong together, for NaN, and when no query has a match.
    """
    query = labels(
        pids=query_pids, camids=query_camids, ids=query_ids, count=len(query_features), side="query"
    )
    gallery = labels(
        pids=gallery_pids,
        camids=gallery_camids,
        ids=gallery_ids,
        count=len(gallery_features),
        side="gallery",
    )
    rule = CameraRule(query, gallery)
    blocks = ranking_blocks(
        query_features, gallery_features, junk=rule.junk, rerank=rerank, block_bytes=block_bytes
    )

    average_precision = np.full(len(query), np.nan)
    inverse_penalty = np.full(len(query), np.nan)
    first_match_rank = np.zeros(len(query), np.int64)
    for index, match_ranks in _match_ranks(blocks, rule):
        found = np.arange(1, len(match_ranks) + 1)
        average_precision[index] = np.mean(found / match_ranks)
        inverse_penalty[index] = len(match_ranks) / match_ranks[-1]
        first_match_rank[index] = match_ranks[0]
        if progress is not None:
            progress(index + 1, len(query))

    valid = first_match_rank > 0
    if not valid.any():
        raise MuvaError(
            f"none of the {len(query)} queries has a match among the {len(gallery)} gallery images "
            "that the camera rule leaves. Are query and gallery of the same data set, and are the "
            "camera ids right?"
        )
    return RetrievalResult(
        mean_ap=float(average_precision[valid].mean()),
        cmc={int(rank): float((first_match_rank[valid] <= rank).mean()) for rank in ranks},
        mean_inp=float(inverse_penalty[valid].mean()),
        average_precision=average_precision,
        first_match_rank=first_match_rank,
        valid_queries=int(valid.sum()),
    )


def _match_ranks(
    blocks: Iterator[tuple[slice, np.ndarray]], rule: CameraRule
) -> Iterator[tuple[int, np.ndarray]]:
    """Each valid query's index and the ranks of its matches, ascending from 1."""
    for rows, distances in blocks:
        for index, row in zip(range(rows.start, rows.stop), distances, strict=True):
            matches, ignored = rule.judge(index)
            if len(matches):
                row[ignored] = np.inf
                yield index, ranks_in(row, matches)


def ranks_in(distances: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Ranks (from 1, ascending) of the entries `wanted` when a row of distances is sorted.

    Equal distances are ranked by index. Only the entries up to the furthest wanted one are sorted.
    """
    values = distances[wanted]
    nearest = distances[distances <= values.max()]
    nearest.sort()
    before = np.searchsorted(nearest, values, side="left")
    tied = np.searchsorted(nearest, values, side="right") - before > 1
    for value in np.unique(values[tied]):
        equals = np.flatnonzero(distances == value)
        here = values == value
        before[here] += np.searchsorted(equals, wanted[here])
    return np.sort(before) + 1
