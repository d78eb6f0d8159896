"""Features -> distances -> CMC, mAP, mINP, re-ranking -> ranked lists.

Names are imported on first use: reading features takes neither Numba's loops nor SciPy's matrices,
which a process that only embeds images would load otherwise.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muva.retrieval.evaluation import evaluate
    from muva.retrieval.features import Features, read_features, write_features
    from muva.retrieval.metrics import RetrievalResult
    from muva.retrieval.reranking import Reranking

__all__ = [
    "Features",
    "Reranking",
    "RetrievalResult",
    "evaluate",
    "read_features",
    "write_features",
]

_ON_FIRST_USE = {
    "Features": "features",
    "Reranking": "reranking",
    "RetrievalResult": "metrics",
    "evaluate": "evaluation",
    "read_features": "features",
    "write_features": "features",
}
"""Name -> the module of this package that has it; none may be called like a module."""


def __getattr__(name: str) -> object:
    if name in _ON_FIRST_USE:
        return getattr(importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
