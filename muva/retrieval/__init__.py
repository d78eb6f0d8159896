"""Features -> distances -> CMC, mAP, mINP, re-ranking -> ranked lists."""

from muva.retrieval.features import Features, read_features, write_features
from muva.retrieval.metrics import RetrievalResult, evaluate
from muva.retrieval.ranked_lists import RankedLists, ranked_lists

__all__ = [
    "Features",
    "RankedLists",
    "RetrievalResult",
    "evaluate",
    "ranked_lists",
    "read_features",
    "write_features",
]
