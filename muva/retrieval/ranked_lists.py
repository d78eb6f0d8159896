"""Ranked lists: the first gallery images of each query, for inspection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from muva.retrieval.camera_rule import Identifiers, Integers, checked_rule
from muva.retrieval.distances import BLOCK_BYTES, distance_blocks
from muva.retrieval.reranking import Encodings, Reranking, reranked_blocks, resolve_encodings


@dataclass(frozen=True, kw_only=True)
class RankedLists:
    """For each query the first images that count under the camera rule, nearest first."""

    indices: np.ndarray
    """(queries, top) int64 gallery indices; -1 if there are fewer images."""
    is_match: np.ndarray
    """(queries, top) bool: whether the image has the identity of the query."""


def ranked_lists(
    *,
    query_features: np.ndarray | Tensor,
    query_pids: Integers,
    query_camids: Integers | None,
    gallery_features: np.ndarray | Tensor,
    gallery_pids: Integers,
    gallery_camids: Integers | None,
    query_ids: Identifiers | None = None,
    gallery_ids: Identifiers | None = None,
    top: int = 10,
    rerank: bool | Reranking | Encodings = False,
    block_bytes: int = BLOCK_BYTES,
) -> RankedLists:
    """The ranking of `evaluate`, cut off after `top` images; same inputs and errors."""
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
    sides = query_features, gallery_features
    if encodings := resolve_encodings(rerank, *sides, rule.junk, block_bytes=block_bytes):
        blocks = reranked_blocks(*sides, encodings, block_bytes=block_bytes)
    else:
        blocks = distance_blocks(*sides, block_bytes=block_bytes)
    indices = np.full((len(query_features), top), -1, np.int64)
    is_match = np.zeros((len(query_features), top), bool)
    for rows, distances in blocks:
        distances[:, rule.junk] = np.inf
        for index, row in zip(range(rows.start, rows.stop), distances, strict=True):
            matches, ignored = rule.matches_and_ignored(index)
            row[ignored] = np.inf
            first = nearest_indices(row, top)
            indices[index, : len(first)] = first
            is_match[index, : len(first)] = np.isin(first, matches)
    return RankedLists(indices=indices, is_match=is_match)


def nearest_indices(distances: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` smallest finite distances in ascending order, ties broken by index."""
    count = min(count, len(distances))
    if count == 0:
        return np.empty(0, np.int64)
    furthest = np.partition(distances, count - 1)[count - 1]
    candidates = np.flatnonzero((distances <= furthest) & np.isfinite(distances))
    return candidates[np.argsort(distances[candidates], kind="stable")[:count]]
