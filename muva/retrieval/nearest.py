"""Exact nearest neighbours among very many images, in blocks of any size.

As in `match_ranks`, a float32 product determines which images may be among them, and float64
cosines decide. The neighbours do not depend on blocks, threads or kernels. Ties are broken by
index.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch

from muva.retrieval.block_products import cosine_error, similarity_block
from muva.retrieval.distances import BLOCK_BYTES, even_slices
from muva.retrieval.match_ranks import (
    FeatureChunk,
    run_in_threads,
    thread_slices,
)
from muva.retrieval.neighbour_loops import keep_nearest, merge_nearest


@dataclass(frozen=True)
class NearestNeighbours:
    """The nearest neighbours of each image found so far, and its lowest cosine."""

    images: np.ndarray
    """(images, count) int64: numbers of the nearest images, itself included, nearest first; `NONE`
    where fewer have been seen."""
    cosines: np.ndarray
    """(images, count) float64."""
    lowest: np.ndarray
    """(images,) float64."""

    NONE = np.iinfo(np.int64).max

    @classmethod
    def empty(cls, images: int, *, count: int) -> NearestNeighbours:
        """The state before any comparison."""
        return cls(
            np.full((images, count), cls.NONE),
            np.full((images, count), -np.inf),
            np.full(images, np.inf),
        )

    def rows(self, rows: slice) -> NearestNeighbours:
        """A view of some of the images; updates apply to the whole."""
        return NearestNeighbours(self.images[rows], self.cosines[rows], self.lowest[rows])

    def merge(self, other: NearestNeighbours) -> None:
        """Add the neighbours that the same images have elsewhere."""
        merge_nearest(self.images, self.cosines, other.images, other.cosines)
        np.minimum(self.lowest, other.lowest, out=self.lowest)


def compare_chunks(
    one: FeatureChunk,
    other: FeatureChunk,
    *,
    found_for_one: NearestNeighbours,
    found_for_other: NearestNeighbours,
    included: np.ndarray,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int], None] = lambda pairs: None,
) -> None:
    """Compare all images of two chunks, which may be the same one, in both directions.

    `included` is (all images,) bool: whether an image takes part. `progress` is called with the
    number of pairs compared since the last call.
    """
    edge = min(isqrt(block_bytes // 4), block_bytes // (4 * one.width))
    pieces, others = (even_slices(len(side), edge) for side in (one, other))
    error = cosine_error(one.width)
    buffer, transposed = torch.empty(2, max(s.stop - s.start for s in pieces + others) ** 2)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:

        def keep(
            near: np.ndarray, row_piece: _Piece, column_piece: _Piece, found: NearestNeighbours
        ) -> None:
            """Shares the rows out among the threads."""
            found = found.rows(row_piece.rows)
            side = (
                column_piece.first,
                column_piece.included,
                column_piece.exact,
                column_piece.scales,
            )
            run_in_threads(
                threads,
                keep_nearest,
                [
                    (
                        *(
                            near[s],
                            row_piece.included[s],
                            row_piece.exact[s],
                            row_piece.scales[s],
                            *side,
                            error,
                        ),
                        *(found.images[s], found.cosines[s], found.lowest[s]),
                    )
                    for s in thread_slices(len(near))
                ],
            )

        for number, rows in enumerate(pieces):
            row_piece = _Piece.of(one, rows, included)
            for columns in others[number:] if one is other else others:
                column_piece = _Piece.of(other, columns, included)
                near = similarity_block(row_piece.normalised, column_piece.normalised, buffer)
                keep(near, row_piece, column_piece, found_for_one)
                if one is not other or rows != columns:
                    swapped = transposed[: near.size].view(near.T.shape)
                    keep(
                        swapped.copy_(torch.from_numpy(near).T).numpy(),
                        column_piece,
                        row_piece,
                        found_for_other,
                    )
                progress(near.size)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Some rows of a chunk, prepared for a block."""

    rows: slice
    first: int
    """Number of the first row among all images."""
    included: np.ndarray
    exact: np.ndarray
    scales: np.ndarray
    normalised: torch.Tensor

    @classmethod
    def of(cls, side: FeatureChunk, rows: slice, included: np.ndarray) -> _Piece:
        return cls(
            rows=rows,
            first=side.first + rows.start,
            included=included[side.first + rows.start : side.first + rows.stop],
            exact=side.exact(rows),
            scales=side.scales[rows],
            normalised=side.normalised(rows),
        )
