"""The cosines of a block of queries and gallery images, with a proven bound of their error.

In float32, or from factors that are rounded to bfloat16, which processors with instructions for it
multiply several times as fast. Ranks that the rounding leaves in doubt are decided by exact
cosines, so the choice changes no rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from muva.retrieval.distances import full_precision

FLOAT32_UNIT, BFLOAT16_UNIT = 2.0**-24, 2.0**-8
"""Unit roundoff: the most by which rounding to nearest changes a number, relative to it."""
MAX_DOUBTFUL = 0.08
"""Fraction of the pairs that may be in doubt: beyond it, exact cosines cost what bfloat16 saves."""


@dataclass(frozen=True, kw_only=True)
class BlockCosines:
    """Cosines that differ from the exact ones by at most `errors` + `relative_error` x |cosine|."""

    cosines: np.ndarray
    """(queries, gallery) float32."""
    errors: np.ndarray
    """(queries,) float64."""
    relative_error: float = 0.0


class BlockProducts:
    """Computes the cosines of a group of queries with one block of gallery images after another."""

    def __init__(self, queries: Float[Tensor, " Q D"], *, columns: int, bfloat16: bool):
        """`queries` have unit length; `columns` is the size of the largest block."""
        self._queries, self._columns = queries, columns
        self._buffer = torch.empty(len(queries) * columns)
        self._rounded: _Rounded | None = None
        if bfloat16:
            self._rounded = _Rounded.of(queries)
            self._half = torch.empty(len(queries) * columns, dtype=torch.bfloat16)

    @property
    def bfloat16(self) -> bool:
        """Whether the next block is computed from factors in bfloat16."""
        return self._rounded is not None

    def use_float32(self) -> None:
        """Compute the next blocks in float32."""
        self._rounded = None

    def cosines(self, images: Float[Tensor, " G D"]) -> BlockCosines:
        """The cosines with these images of unit length; valid until the next call."""
        shape = len(self._queries), len(images)
        cosines = self._buffer[: shape[0] * shape[1]].view(shape)
        if self._rounded is None:
            errors = np.full(shape[0], cosine_error(self._queries.shape[1]))
            found = similarity_block(self._queries, images, self._buffer)
            return BlockCosines(cosines=found, errors=errors)
        others = _Rounded.of(images)
        half = self._half[: shape[0] * shape[1]].view(shape)
        torch.mm(self._rounded.values, others.values.T, out=half)
        cosines.copy_(half)
        return BlockCosines(
            cosines=cosines.numpy(),
            errors=self._rounded.errors_with(others),
            relative_error=1.01 * BFLOAT16_UNIT,  # relative to the rounded cosine
        )


@dataclass(frozen=True, kw_only=True)
class _Rounded:
    """Rows of unit length, rounded to bfloat16."""

    values: Tensor
    lost: np.ndarray
    """(rows,) float64: an upper bound for the length of what rounding has taken from each."""

    @classmethod
    def of(cls, rows: Float[Tensor, " M D"]) -> _Rounded:
        values = rows.bfloat16()
        lost = torch.linalg.vector_norm(rows - values, dim=1).double().numpy()
        return cls(values=values, lost=lost * (1 + cosine_error(rows.shape[1])))

    def errors_with(self, others: _Rounded) -> np.ndarray:
        """(rows,): the most by which a product with rows of `others` differs from the exact cosine.

        With q = q' + e and g = g' + f, |q g - q' g'| <= |e| |g| + |q'| |f|, by the inequality of
        Cauchy and Schwarz. The products are summed in float32.
        """
        furthest = float(others.lost.max())
        of_rounding = self.lost + (1 + self.lost) * furthest
        return of_rounding + 2 * cosine_error(self.values.shape[1])


def similarity_block(
    one: Float[Tensor, " M D"], other: Float[Tensor, " N D"], buffer: Float[Tensor, " size"]
) -> np.ndarray:
    """The product of all rows with all rows in float32 (M, N), written to the buffer."""
    products = buffer[: len(one) * len(other)].view(len(one), -1)
    with full_precision():
        torch.mm(one, other.T, out=products)
    return products.numpy()


def cosine_error(width: int) -> float:
    """Upper bound for the error of a float32 cosine, with a small margin.

    A sum of n products in any order has an error of at most n u / (1 - n u) times the sum of their
    absolute values (Higham, Accuracy and Stability of Numerical Algorithms, Sec. 3.1), which is at
    most 1 here. Rounding the scale and the numbers on both sides adds 4 u.
    """
    terms = (width + 8) * FLOAT32_UNIT
    return terms / (1 - terms)


def bfloat16_is_fast() -> bool:
    """Whether this processor multiplies bfloat16, with sums in float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
