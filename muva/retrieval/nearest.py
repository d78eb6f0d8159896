"""Each image's nearest others among very many, exactly, in blocks of any size.

As in `match_ranks`, a float32 product tells which images may be among them, and float64 cosines
decide: the neighbours do not depend on blocks, threads or kernels. Equal cosines go by index.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch

from muva.retrieval.distances import BLOCK_BYTES, even_slices
from muva.retrieval.match_ranks import (
    FeatureChunk,
    cosine_error,
    run_in_threads,
    similarity_block,
    thread_slices,
)
from muva.retrieval.neighbour_loops import keep_nearest, merge_nearest


@dataclass(frozen=True)
class NearestNeighbours:
    """The nearest of the images that some images were compared with, and the lowest cosine."""

    images: np.ndarray
    """(images, count) int64: numbers of the nearest, itself included, nearest first; `NONE` where
    fewer were seen."""
    cosines: np.ndarray
    """(images, count) float64."""
    lowest: np.ndarray
    """(images,) float64."""

    NONE = np.iinfo(np.int64).max

    @classmethod
    def empty(cls, images: int, *, count: int) -> NearestNeighbours:
        """Before anything was compared."""
        return cls(
            np.full((images, count), cls.NONE),
            np.full((images, count), -np.inf),
            np.full(images, np.inf),
        )

    def rows(self, rows: slice) -> NearestNeighbours:
        """Some of the images; what is found for them is found for the whole."""
        return NearestNeighbours(self.images[rows], self.cosines[rows], self.lowest[rows])

    def merge(self, other: NearestNeighbours) -> None:
        """Take what the same images found elsewhere."""
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
    """Compares all images of two stretches, which may be the same one, both ways at once.

    `included`: (all images,) bool, whether an image takes part. `progress` hears of pairs compared.
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
    """Some rows of a side, as a block needs them."""

    rows: slice
    first: int
    """The number of the first among all images."""
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
