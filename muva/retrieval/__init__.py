"""Retrieval: distances, CMC, mAP and mINP, re-ranking, and ranked lists from features."""

from muva.retrieval.features import Features, read_features, write_features
from muva.retrieval.metrics import evaluate
from muva.retrieval.ranked_lists import RankedLists, ranked_lists
from muva.retrieval.reranking import Reranking
from muva.retrieval.scores import RetrievalResult

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
