"""Features -> distances -> CMC, mAP, mINP, re-ranking -> ranked lists.

Names are imported on first use: reading features takes neither Numba's loops nor SciPy's matrices,
which a process that only embeds images would load otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muva.lazy_names import names_on_first_use

if TYPE_CHECKING:
    from muva.retrieval.calibration import Calibration
    from muva.retrieval.evaluation import evaluate
    from muva.retrieval.features import Features, read_features, write_features
    from muva.retrieval.metrics import RetrievalResult
    from muva.retrieval.reranking import Reranking

__all__ = [
    "Calibration",
    "Features",
    "Reranking",
    "RetrievalResult",
    "evaluate",
    "read_features",
    "write_features",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "Calibration": "calibration",
        "Features": "features",
        "Reranking": "reranking",
        "RetrievalResult": "metrics",
        "evaluate": "evaluation",
        "read_features": "features",
        "write_features": "features",
    },
)
