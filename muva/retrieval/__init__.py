"""Features -> distances -> CMC, mAP, mINP, re-ranking -> ranked lists."""

from muva.retrieval.features import Features, read_features, write_features
from muva.retrieval.metrics import RetrievalResult, evaluate
from muva.retrieval.ranked_lists import RankedLists, ranked_lists
from muva.retrieval.reranking import Reranking

__all__ = [
    "Features",
    "RankedLists",
    "Reranking",
    "RetrievalResult",
    "evaluate",
    "ranked_lists",
    "read_features",
    "write_features",
]
