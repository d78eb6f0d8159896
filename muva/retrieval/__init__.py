"""Features -> distances -> CMC, mAP, mINP, re-ranking -> ranked lists."""

from muva.retrieval.metrics import RetrievalResult, evaluate

__all__ = ["RetrievalResult", "evaluate"]
