"""CMC, mAP and mINP of a query set against a gallery, exactly and with bounded memory.

They depend only on the ranks of each query's matches, which are counted block by block. Ties are
broken by gallery index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from muva.retrieval.camera_rule import Identifiers, Integers, checked_rule
from muva.retrieval.distances import BLOCK_BYTES
from muva.retrieval.metrics import RetrievalResult, score
from muva.retrieval.reranking import Encodings, Reranking, resolve_encodings
from muva.retrieval.verification import ranks_and_verification


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
    verify: bool = True,
    promised: Mapping[float, float] | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalResult:
    """Rank the gallery for each query, and compute the metrics of the ranking.

    Features are (images, width), are normalised here, and may be memory-mapped arrays. Without
    camera ids, a query only ignores the gallery image with its own id. `rerank` enables re-ranking
    with k-reciprocal neighbours: True uses the settings of the paper; `Encodings` must be those of
    these features, computed without junk. With `verify`, all pairs are compared too; `promised` are
    thresholds for false-accept rates, such as those of a calibration, of which
    `verification.delivered` says what comes. `progress` is called with (done, all): first with
    pairs of images for re-ranking, then with gallery images. Raises MuvaError if inputs do not
    match each other, contain NaN, or if no query has a match.
    """
    rule = checked_rule(
        query_pids=query_pids,
        query_camids=query_camids,
        gallery_pids=gallery_pids,
        gallery_camids=gallery_camids,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        queries=len(query_features),
        gallery=len(gallery_features),
    )
    encodings = resolve_encodings(
        rerank,
        query_features,
        gallery_features,
        rule.junk,
        block_bytes=block_bytes,
        progress=progress,
    )
    ranks_of_matches, verification = ranks_and_verification(
        query_features,
        gallery_features,
        rule,
        rescoring=encodings,
        block_bytes=block_bytes,
        verify=verify,
        promised=promised,
        progress=progress,
    )
    return score(ranks_of_matches, rule, ranks=ranks, verification=verification)
