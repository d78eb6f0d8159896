"""CMC, mAP and mINP of a query set against a gallery, exactly and in bounded memory.

They depend only on the ranks of each query's true matches: what is nearer than these is counted in
one block of similarities after the other. Ties go to the lower gallery index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from muva.retrieval.camera_rule import CameraRule, Identifiers, Integers, labels
from muva.retrieval.distances import BLOCK_BYTES
from muva.retrieval.match_ranks import MatchRanks, match_ranks
from muva.retrieval.reranking import Reranking, ranking_blocks
from muva.retrieval.scores import RetrievalResult, score


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
    if rerank:
        settings = rerank if isinstance(rerank, Reranking) else Reranking()
        found = _reranked(query_features, gallery_features, rule, settings, block_bytes, progress)
    else:
        found = match_ranks(
            query_features, gallery_features, rule, block_bytes=block_bytes, progress=progress
        )
    return score(found, rule, ranks=ranks)


def _reranked(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    rule: CameraRule,
    settings: Reranking,
    block_bytes: int,
    progress: Callable[[int, int], None] | None,
) -> MatchRanks:
    """The ranks of the matches by re-ranked distances."""
    blocks = ranking_blocks(
        query, gallery, junk=rule.junk, rerank=settings, block_bytes=block_bytes
    )
    images_of = [np.flatnonzero(rule.cameras == camera) for camera in range(rule.camera_count)]
    counts, ranks, within, cameras = [0], [], [], []
    for rows, distances in blocks:
        for index, row in zip(range(rows.start, rows.stop), distances, strict=True):
            matches, ignored = rule.judge(index)
            counts.append(len(matches))
            if not len(matches):
                continue
            row[ignored] = np.inf
            everywhere, seen_by = ranks_in(row, matches), rule.cameras[matches]
            alone = np.empty_like(everywhere)
            for camera in np.unique(seen_by):
                here = images_of[camera]
                alone[seen_by == camera] = ranks_in(
                    row[here], np.searchsorted(here, matches[seen_by == camera])
                )
            order = np.argsort(everywhere)
            ranks.append(everywhere[order])
            within.append(alone[order])
            cameras.append(seen_by[order])
        if progress is not None:
            progress(rows.stop, len(query))
    nothing = [np.empty(0, np.int64)]
    return MatchRanks(
        start=np.cumsum(counts),
        ranks=np.concatenate(ranks or nothing),
        within=np.concatenate(within or nothing),
        cameras=np.concatenate(cameras or nothing),
    )


def ranks_in(distances: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Ranks (from 1) of the entries `wanted` when a row of distances is sorted.

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
    return before + 1
