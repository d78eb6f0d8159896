"""Distances between L2-normalised features: dense, or in blocks of queries.

With blocks, memory is bounded by the size of one block, whatever the number of queries. float32
features are used in place, including memory-mapped files; other dtypes are converted in chunks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from muva.errors import MuvaError
from muva.retrieval.counting import squared_lengths

BLOCK_BYTES = 128 * 2**20
"""Size of a block of float32 distances."""

_CHUNK_ROWS = 8192


def squared_distances(
    query: np.ndarray | Tensor, gallery: np.ndarray | Tensor
) -> Float[Tensor, "Q G"]:
    """Squared Euclidean distances of the normalised features, 0 to 4, as a dense float32 matrix."""
    return torch.cat(
        [block.clone() for _, block in _similarity_blocks(query, gallery, BLOCK_BYTES)]
    ).mul_(-2).add_(2).clamp_(min=0)  # fmt: skip


def distance_blocks(
    query: np.ndarray | Tensor, gallery: np.ndarray | Tensor, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[slice, np.ndarray]]:
    """Slices of the queries, in order, each with its distances to the whole gallery.

    The distance is the negative cosine. It ranks like the squared Euclidean distance of normalised
    features (2 - 2 cos), but without the rounding of that formula. The yielded array may be
    modified, and is overwritten by the next block.
    """
    for rows, similarities in _similarity_blocks(query, gallery, block_bytes):
        yield rows, similarities.neg_().numpy()


def feature_matrix(features: np.ndarray | Tensor, *, name: str) -> Float[Tensor, "M D"]:
    """The features as a CPU tensor without copying; MuvaError unless they are a float matrix."""
    if isinstance(features, np.ndarray):
        if features.dtype.kind == "f" and not features.dtype.isnative:
            features = features.astype(features.dtype.newbyteorder("="))
        if features.dtype not in (np.float16, np.float32, np.float64):
            raise MuvaError(f"{name}: expected floating-point features, found {features.dtype}")
        with warnings.catch_warnings():
            # torch warns about read-only arrays, such as memory maps; nothing is written here.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
            features = torch.from_numpy(
                features if _has_positive_strides(features) else features.copy()
            )
    features = features.detach().cpu()
    if features.ndim != 2 or not features.is_floating_point():
        raise MuvaError(
            f"{name}: expected floating-point features of shape (images, width), "
            f"found {features.dtype} of shape {tuple(features.shape)}"
        )
    if features.numel() == 0:
        raise MuvaError(f"{name}: expected features, found shape {tuple(features.shape)}")
    return features


def normalised(features: Float[Tensor, "M D"], *, name: str) -> Float[Tensor, "M D"]:
    """A float32 copy with rows of length 1; zero rows stay zero."""
    return features.float() * inverse_norms(features, name).float()[:, None]


def even_slices(total: int, max_size: int) -> list[slice]:
    """The fewest slices of at most `max_size` that cover `total`, of nearly equal size."""
    count = max(1, math.ceil(total / max(1, max_size)))
    edges = [total * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def inverse_norms(features: Float[Tensor, "M D"], name: str) -> Float[Tensor, " M"]:
    """1 / length of each row in float64 (1e12 for zero rows); MuvaError for NaN or infinity."""
    norms = torch.empty(len(features), dtype=torch.float64)
    for rows in even_slices(len(features), _CHUNK_ROWS):
        chunk = features[rows]
        chunk = chunk if chunk.dtype == torch.float64 else chunk.float()
        squared_lengths(chunk.contiguous().numpy(), norms[rows].numpy())
    norms.sqrt_()
    invalid = ~torch.isfinite(norms)
    if invalid.any():
        raise MuvaError(
            f"{name}: {int(invalid.sum())} of {len(features)} rows contain NaN, infinity or "
            f"numbers whose squares are too large, the first is row {int(invalid.nonzero()[0])}. "
            "Was the training of the model that computed them stable?"
        )
    return 1 / norms.clamp(min=1e-12)


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 matrix products in float32, even if bf16 or TF32 was enabled for training."""
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


def _similarity_blocks(
    query: np.ndarray | Tensor, gallery: np.ndarray | Tensor, block_bytes: int
) -> Iterator[tuple[slice, Float[Tensor, "B G"]]]:
    queries = feature_matrix(query, name="query_features")
    gallery_features = feature_matrix(gallery, name="gallery_features")
    if queries.shape[1] != gallery_features.shape[1]:
        raise MuvaError(
            f"expected query and gallery features of the same width, found {queries.shape[1]} and "
            f"{gallery_features.shape[1]}. Both must come from the same model"
        )
    gallery_scale = inverse_norms(gallery_features, "gallery_features").float()
    blocks = even_slices(len(queries), block_bytes // (4 * max(1, len(gallery_features))))
    repeated, first = _repeated_rows(gallery_features)
    buffer = torch.empty(max(b.stop - b.start for b in blocks), len(gallery_features))
    for rows in blocks:
        block = normalised(queries[rows], name="query_features")
        similarities = buffer[: len(block)]
        with full_precision():
            _product(block, gallery_features, out=similarities)
        similarities.mul_(gallery_scale)
        # Kernels for few rows sum some columns in another order than others (MKL on AMD: up to 3
        # rows a thread): equal gallery images would differ in the last bit and no longer tie.
        similarities[:, repeated] = similarities[:, first]
        yield rows, similarities


def _product(
    block: Float[Tensor, "B D"], gallery: Float[Tensor, "G D"], *, out: Float[Tensor, "B G"]
) -> None:
    if gallery.dtype == torch.float32:
        torch.mm(block, gallery.T, out=out)
        return
    for columns in even_slices(len(gallery), _CHUNK_ROWS):
        out[:, columns] = block @ gallery[columns].float().T


def _repeated_rows(
    features: Float[Tensor, "M D"],
) -> tuple[Int[Tensor, " repeated"], Int[Tensor, " repeated"]]:
    """Rows that equal an earlier row, and the first such row for each."""
    # Sums of the bits as integers are exact, so equal rows have equal sums; few others do.
    as_integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[features.element_size()]
    sums = torch.empty(len(features), dtype=torch.int64)
    for rows in even_slices(len(features), _CHUNK_ROWS):
        sums[rows] = features[rows].contiguous().view(as_integers).sum(dim=1, dtype=torch.int64)
    _, group, sizes = sums.unique(return_inverse=True, return_counts=True)
    first_with: dict[bytes, int] = {}
    pairs = []
    for row in (sizes[group] > 1).nonzero().flatten().tolist():
        first = first_with.setdefault(features[row].numpy().tobytes(), row)
        if first != row:
            pairs.append((row, first))
    repeated, firsts = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return repeated, firsts


def _has_positive_strides(array: np.ndarray) -> bool:
    return all(stride >= 0 for stride in array.strides)
