"""The most similar of some features to another, exactly.

The cosines are computed in float32, which reads each feature once, and again in float64 where the
rounding of float32 leaves the order in question. No copy of the features in float64 is made.
"""

from __future__ import annotations

import numpy as np

_BLOCK_ROWS = 65_536


def most_similar(
    features: np.ndarray, feature: np.ndarray, *, top: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and cosines, (top,) each or fewer, of the features most similar to another one.

    Args:
        features: (M, F) float32 of unit length, in memory or memory-mapped.
        feature: (F,), of unit length.
        allowed: (M,) bool, which ones may be found; None: all.

    Ties are broken by index. The cosines are those of float64.
    """
    # Imports Numba and SciPy, which only searching needs.
    from muva.retrieval.block_products import cosine_error
    from muva.retrieval.ranked_lists import nearest_indices

    rounded = np.empty(len(features), np.float32)
    for first in range(0, len(features), _BLOCK_ROWS):
        some = slice(first, first + _BLOCK_ROWS)
        np.matmul(features[some], feature.astype(np.float32), out=rounded[some])
    if allowed is not None:
        rounded[~allowed] = -np.inf
    top = min(top, len(features) if allowed is None else int(np.count_nonzero(allowed)))
    if top == 0:
        return np.empty(0, np.intp), np.empty(0)
    doubt = 2 * cosine_error(len(feature))
    in_question = np.flatnonzero(rounded >= np.partition(rounded, -top)[-top] - doubt)
    exact = features[in_question].astype(np.float64) @ feature.astype(np.float64)
    nearest = nearest_indices(-exact, top)
    return in_question[nearest], exact[nearest]
