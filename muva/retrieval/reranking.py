"""Re-ranking with k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with
k-reciprocal Encoding", CVPR 2017), exact, without the dense matrix of all against all.

What the definition needs of each row of that matrix is its maximum and its first k1 + 1 neighbours;
the encodings V are sparse, and the Jaccard distance of one block of queries is made at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from muva.retrieval.distances import (
    BLOCK_BYTES,
    distance_blocks,
    even_slices,
    feature_matrix,
    normalised,
)


@dataclass(frozen=True, kw_only=True)
class Reranking:
    """Settings of the re-ranking; the defaults are the paper's."""

    k1: int = 20
    """Neighbours that may be reciprocal."""
    k2: int = 6
    """Neighbours whose encodings are averaged."""
    original_weight: float = 0.3
    """lambda: the share of the original distance in the final one."""


def ranking_blocks(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    junk: np.ndarray,
    rerank: bool | Reranking,
    block_bytes: int,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of the distances to rank by, infinite for the gallery rows in `junk`."""
    if not rerank:
        blocks = distance_blocks(query, gallery, block_bytes=block_bytes)
    else:
        settings = rerank if isinstance(rerank, Reranking) else Reranking()
        blocks = reranked_blocks(
            query,
            gallery,
            left_out=junk,
            k1=settings.k1,
            k2=settings.k2,
            original_weight=settings.original_weight,
            block_bytes=block_bytes,
        )
    for rows, distances in blocks:
        distances[:, junk] = np.inf
        yield rows, distances


def reranked_distances(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
) -> Float[np.ndarray, "Q G"]:
    """Dense re-ranked distances, for sets that are small enough; junk must be left out before.

    `original_weight` is the paper's lambda.
    """
    blocks = reranked_blocks(query, gallery, k1=k1, k2=k2, original_weight=original_weight)
    return np.concatenate([block.copy() for _, block in blocks])


def reranked_blocks(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    left_out: np.ndarray | None = None,
    k1: int = 20,
    k2: int = 6,
    original_weight: float = 0.3,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[slice, np.ndarray]]:
    """As `distance_blocks`, with re-ranked distances.

    Gallery rows in `left_out` (junk) take no part in the re-ranking; their distance is infinite.
    """
    queries = feature_matrix(query, name="query_features")
    galleries = feature_matrix(gallery, name="gallery_features")
    kept = np.setdiff1d(np.arange(len(galleries)), [] if left_out is None else left_out)
    everyone = torch.cat(
        [
            normalised(queries, name="query_features"),
            normalised(galleries[torch.from_numpy(kept)], name="gallery_features"),
        ]
    )
    neighbours, furthest = _neighbourhoods(everyone, count=max(k1 + 1, k2), block_bytes=block_bytes)
    encodings = _encodings(everyone, neighbours[:, : k1 + 1], furthest, k1)
    encodings = _expand(encodings, neighbours[:, :k2])
    gallery_columns = _by_column(encodings, first_row=len(queries))

    whole = np.empty((0, 0), np.float32)
    for rows, distances in distance_blocks(
        queries, everyone[len(queries) :], block_bytes=block_bytes
    ):
        if len(whole) < len(distances):
            whole = np.empty((len(distances), len(galleries)), np.float32)
        block = whole[: len(distances)]
        block.fill(np.inf)
        original = _squared(distances) / furthest[rows, None]
        for index in range(rows.start, rows.stop):
            jaccard = _jaccard(encodings, index, gallery_columns, len(kept))
            block[index - rows.start, kept] = (
                original_weight * original[index - rows.start] + (1 - original_weight) * jaccard
            )
        yield rows, block


@dataclass(frozen=True)
class _Sparse:
    """Rows of a sparse matrix: row i holds `values[start[i]:start[i + 1]]` at `columns[...]`."""

    start: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, rows: list[tuple[np.ndarray, np.ndarray]]) -> _Sparse:
        lengths = [len(columns) for columns, _ in rows]
        return cls(
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([columns for columns, _ in rows]),
            np.concatenate([values for _, values in rows]),
        )

    def __len__(self) -> int:
        return len(self.start) - 1

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        here = slice(self.start[index], self.start[index + 1])
        return self.columns[here], self.values[here]


def _neighbourhoods(
    everyone: Float[Tensor, "M D"], *, count: int, block_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each image's first `count` neighbours, itself included, and its largest distance."""
    total = len(everyone)
    count = min(count, total)
    neighbours = np.empty((total, count), np.int64)
    furthest = np.empty(total, np.float32)
    for rows, distances in distance_blocks(everyone, everyone, block_bytes=block_bytes):
        furthest[rows] = _squared(distances.max(axis=1))
        for index, row in zip(range(rows.start, rows.stop), distances, strict=True):
            last = np.partition(row, count - 1)[count - 1]
            candidates = np.flatnonzero(row <= last)
            order = np.argsort(row[candidates], kind="stable")
            neighbours[index] = candidates[order[:count]]
    return neighbours, np.maximum(furthest, np.finfo(np.float32).tiny)


def _encodings(
    everyone: Float[Tensor, "M D"], neighbours: np.ndarray, furthest: np.ndarray, k1: int
) -> _Sparse:
    """V: each image's reciprocal neighbours, weighted by exp(-distance), with sum 1."""
    near = _reciprocal(neighbours)
    nearer = _reciprocal(neighbours[:, : round(k1 / 2) + 1])
    features = everyone.numpy()
    inside = np.zeros(len(features), bool)
    rows = []
    for index, reciprocal in enumerate(near):
        inside[reciprocal] = True
        extras = [nearer[candidate] for candidate in reciprocal]
        extras = [extra for extra in extras if inside[extra].sum() > 2 / 3 * len(extra)]
        inside[reciprocal] = False
        members = np.unique(np.concatenate([reciprocal, *extras]))
        # Not as a product of matrix and vector, whose sums differ between equal rows.
        cosines = (features[members] * features[index]).sum(axis=1)
        weights = np.exp(-_squared(-cosines) / furthest[index])
        rows.append((members, (weights / weights.sum()).astype(np.float32)))
    return _Sparse.of(rows)


def _reciprocal(neighbours: np.ndarray) -> list[np.ndarray]:
    """For each image those of its neighbours that have it among theirs, nearest first."""
    images = np.arange(len(neighbours))[:, None, None]
    return [
        row[mutual]
        for rows in even_slices(len(neighbours), _RECIPROCAL_ROWS)
        for row, mutual in zip(
            neighbours[rows],
            (neighbours[neighbours[rows]] == images[rows]).any(axis=2),
            strict=True,
        )
    ]


_RECIPROCAL_ROWS = 4096


def _expand(encodings: _Sparse, neighbours: np.ndarray) -> _Sparse:
    """Local query expansion: each row becomes the mean of its first k2 neighbours' rows."""
    rows = []
    for near in neighbours:
        parts = [encodings.row(int(index)) for index in near]
        columns, place = np.unique(np.concatenate([c for c, _ in parts]), return_inverse=True)
        sums = np.bincount(place, weights=np.concatenate([v for _, v in parts]))
        rows.append((columns, (sums / len(near)).astype(np.float32)))
    return _Sparse.of(rows)


def _by_column(encodings: _Sparse, *, first_row: int) -> _Sparse:
    """The transpose of the rows from `first_row` on; row indices count from there."""
    begin = encodings.start[first_row]
    row_of = np.repeat(np.arange(len(encodings) - first_row), np.diff(encodings.start[first_row:]))
    columns, values = encodings.columns[begin:], encodings.values[begin:]
    order = np.argsort(columns, kind="stable")
    start = np.searchsorted(columns[order], np.arange(len(encodings) + 1))
    return _Sparse(start, row_of[order], values[order])


def _jaccard(
    encodings: _Sparse, index: int, gallery_columns: _Sparse, gallery_count: int
) -> np.ndarray:
    """Distances 1 - s / (2 - s) of one query to the gallery, s the sum of minima."""
    overlap = np.zeros(gallery_count, np.float32)
    for column, weight in zip(*encodings.row(index), strict=True):
        images, weights = gallery_columns.row(int(column))
        overlap[images] += np.minimum(weights, weight)
    return 1 - overlap / (2 - overlap)


def _squared(negative_cosines: np.ndarray) -> np.ndarray:
    return np.maximum(2 + 2 * negative_cosines, 0)
