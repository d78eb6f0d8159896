"""CMC, mAP and mINP of a query set against a gallery, exactly and in bounded memory.

They depend only on the ranks of each query's true matches: what is nearer than these is counted in
one block of similarities after the other. Ties go to the lower gallery index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from muva.retrieval.camera_rule import CameraRule, Identifiers, Integers, checked_labels
from muva.retrieval.distances import BLOCK_BYTES
from muva.retrieval.match_ranks import match_ranks
from muva.retrieval.reranking import Encodings, Reranking, resolve_encodings
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
    rerank: bool | Reranking | Encodings = False,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """Rank the gallery for each query and score the ranking.

    Features are (images, width), normalised here; numpy arrays may be memory-mapped. Without camera
    ids a query ignores only the gallery image of its own id. `rerank` orders by k-reciprocal
    neighbours instead: True means the paper's settings, and `Encodings` are those of these features
    without junk. `progress` hears of what is done and of all there is, first of pairs compared for
    the re-ranking, then of gallery images. Raises MuvaError for inputs that do not belong together,
    for NaN, and when no query has a match.
    """
    query = checked_labels(
        pids=query_pids, camids=query_camids, ids=query_ids, count=len(query_features), side="query"
    )
    gallery = checked_labels(
        pids=gallery_pids,
        camids=gallery_camids,
        ids=gallery_ids,
        count=len(gallery_features),
        side="gallery",
    )
    rule = CameraRule(query, gallery)
    encodings = resolve_encodings(
        rerank,
        query_features,
        gallery_features,
        rule.junk,
        block_bytes=block_bytes,
        progress=progress,
    )
    ranks_of_matches = match_ranks(
        query_features,
        gallery_features,
        rule,
        rescoring=encodings,
        block_bytes=block_bytes,
        progress=progress,
    )
    return score(ranks_of_matches, rule, ranks=ranks)
