"""Re-ranking with k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with
k-reciprocal Encoding", CVPR 2017), computed exactly, but without a dense matrix of all distances.

Of each row of that matrix, the definition needs only the maximum and the first k1 + 1 neighbours;
the encodings V are sparse. The distance of a pair is then
lambda o + (1 - lambda) (1 - s / (2 - s)), where o is the original distance divided by its row's
maximum and s is the sum of minima of the two encodings. Relative to the cosine, this is a gain for
each query and an offset for each pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, product

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from muva.retrieval.distances import BLOCK_BYTES, distance_blocks, even_slices
from muva.retrieval.match_ranks import (
    FeatureChunk,
    Pairs,
    check_widths,
    pair_similarities,
    run_in_threads,
    thread_slices,
)
from muva.retrieval.nearest import NearestNeighbours, compare_chunks
from muva.retrieval.neighbour_loops import pair_jaccard_offsets, row_jaccard_offsets

_MIN_DISTANCE = 1e-12
"""The smallest 2 - 2 cos that float64 distinguishes from zero."""


@dataclass(frozen=True, kw_only=True)
class Reranking:
    """Settings of re-ranking; the defaults are those of the paper."""

    k1: int = 20
    """Number of neighbours that may be reciprocal."""
    k2: int = 6
    """Number of neighbours whose encodings are averaged."""
    original_weight: float = 0.3
    """lambda: weight of the original distance in the final distance."""

    @property
    def neighbours(self) -> int:
        """How many neighbours of each image are required, itself included."""
        return max(self.k1 + 1, self.k2)


@dataclass(frozen=True, kw_only=True)
class Encodings:
    """Everything that re-ranking needs besides the cosines; an `AffineRescoring` for `match_ranks`.

    The final distance is 2 lambda / furthest minus this similarity; the first term is constant for
    each query.
    """

    query: sparse.csr_array
    """(queries, images) float32: the encodings V of the queries; columns are all images, queries
    first."""
    gallery: sparse.csr_array
    """(gallery, images) float32; the rows of junk are empty."""
    furthest: np.ndarray
    """(queries,) float64: the largest squared distance of each query to any image."""
    settings: Reranking

    @property
    def gains(self) -> np.ndarray:
        """(queries,) float64: 2 lambda / furthest."""
        return 2 * self.settings.original_weight / self.furthest

    def of_queries(self, numbers: np.ndarray) -> Encodings:
        """The encodings for a subset of the queries."""
        return replace(self, query=self.query[numbers], furthest=self.furthest[numbers])

    def offset_block(self, queries: slice, gallery: slice) -> Float[np.ndarray, "Q G"]:
        """-(1 - lambda) x Jaccard distance between these queries and gallery images."""
        query_rows = self.query[queries]
        by_column = self.gallery[gallery].tocsc()
        out = np.empty((query_rows.shape[0], by_column.shape[0]), np.float32)
        csc = (by_column.indptr, by_column.indices, by_column.data)
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            run_in_threads(
                threads,
                row_jaccard_offsets,
                [
                    (
                        *(
                            query_rows.indptr[s.start : s.stop + 1],
                            query_rows.indices,
                            query_rows.data,
                        ),
                        *(*csc, 1 - self.settings.original_weight, out[s]),
                    )
                    for s in thread_slices(len(out))
                ],
            )
        return out

    def pair_offsets(self, pairs: Pairs) -> np.ndarray:
        """The same for pairs."""
        out = np.empty(len(pairs.query), np.float32)
        one, other = ((side.indptr, side.indices, side.data) for side in (self.query, self.gallery))
        weight = 1 - self.settings.original_weight
        pair_jaccard_offsets(*one, *other, pairs.query, pairs.gallery, weight, out)
        return out


def compute_encodings(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    excluded: np.ndarray,
    settings: Reranking,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Encodings:
    """The encodings of queries and gallery; gallery rows in `excluded` do not take part.

    Features are as in `match_ranks`. `progress` is called with (pairs of images compared, all).
    """
    queries = FeatureChunk(query, "query_features")
    galleries = FeatureChunk(gallery, "gallery_features", first=len(query))
    check_widths(queries, galleries)
    included = included_images(len(queries), len(galleries), excluded)
    nearest = NearestNeighbours.empty(
        len(included), count=min(settings.neighbours, int(included.sum()))
    )
    done, total = 0, len(included) * (len(included) + 1) // 2

    def add_progress(pairs: int) -> None:
        nonlocal done
        done += pairs
        if progress is not None:
            progress(min(done, total), total)

    sides = [queries, galleries]
    for one, other in combinations_with_replacement(sides, 2):
        compare_chunks(
            one,
            other,
            found_for_one=nearest.rows(one.image_range),
            found_for_other=nearest.rows(other.image_range),
            included=included,
            block_bytes=block_bytes,
            progress=add_progress,
        )
    members = expanded_reciprocal_members(nearest, settings)
    cosines = np.empty(len(members.query))
    for one, other in product(sides, repeat=2):
        positions = members.among(one.image_range, other.image_range)
        cosines[positions] = pair_similarities(one, other, members.select(positions))
    return encode(nearest, members, cosines, queries=len(queries), settings=settings)


def resolve_encodings(
    rerank: bool | Reranking | Encodings,
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    excluded: np.ndarray,
    *,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Encodings | None:
    """Encodings for `rerank`: none (False), default settings (True), settings, or encodings."""
    if isinstance(rerank, Encodings) or not rerank:
        return rerank or None
    return compute_encodings(
        query,
        gallery,
        excluded=excluded,
        settings=Reranking() if rerank is True else rerank,
        block_bytes=block_bytes,
        progress=progress,
    )


def included_images(queries: int, gallery: int, excluded: np.ndarray) -> np.ndarray:
    """(queries + gallery,) bool: False for the gallery rows in `excluded`."""
    included = np.ones(queries + gallery, bool)
    included[queries + np.asarray(excluded, np.int64)] = False
    return included


def expanded_reciprocal_members(nearest: NearestNeighbours, settings: Reranking) -> Pairs:
    """Pairs of an image and a member of its expanded reciprocal set R*, sorted."""
    mutual = _reciprocal(nearest, settings.k1 + 1)
    nearer = _reciprocal(nearest, round(settings.k1 / 2) + 1)
    sizes = np.diff(nearer.indptr)
    of, members = [], []
    for rows in even_slices(len(nearest.images), _CHUNK_ROWS):
        candidates = mutual[rows]
        # For each candidate, how many members of its half-size set are in the image's own set.
        widening = candidates.multiply(candidates @ nearer.T).tocsr()
        widening.data = (3 * widening.data > 2 * sizes[widening.indices]).astype(np.int32)
        widening.eliminate_zeros()
        expanded = (candidates + widening @ nearer).tocsr()
        expanded.sort_indices()
        of.append(rows.start + np.repeat(np.arange(expanded.shape[0]), np.diff(expanded.indptr)))
        members.append(expanded.indices.astype(np.int64))
    return Pairs(np.concatenate(of), np.concatenate(members))


_CHUNK_ROWS = 16_384


def _reciprocal(nearest: NearestNeighbours, count: int) -> sparse.csr_array:
    """(images, images): 1 where each image is among the first neighbours of the other."""
    near = _first(nearest, count)
    return near.multiply(near.T).tocsr()


def _first(nearest: NearestNeighbours, count: int) -> sparse.csr_array:
    """(images, images): 1 for the first neighbours of each image."""
    images = nearest.images[:, :count]
    seen = images != NearestNeighbours.NONE
    start = np.concatenate([[0], np.cumsum(seen.sum(axis=1))])
    ones = np.ones(start[-1], np.int32)
    return sparse.csr_array((ones, images[seen], start), shape=(len(images), len(images)))


def encode(
    nearest: NearestNeighbours,
    members: Pairs,
    cosines: np.ndarray,
    *,
    queries: int,
    settings: Reranking,
) -> Encodings:
    """V: members weighted by exp(-distance), normalised, then averaged over k2 neighbours.

    `cosines` is (members,) float64, for the pairs of `expanded_reciprocal_members`.
    """
    total = len(nearest.images)
    furthest = np.maximum(2 - 2 * nearest.lowest, _MIN_DISTANCE)
    weights = np.exp(-np.maximum(2 - 2 * cosines, 0) / furthest[members.query])
    start = np.searchsorted(members.query, np.arange(total + 1))
    weights /= np.repeat(np.bincount(members.query, weights, total), np.diff(start))
    encodings = sparse.csr_array((weights, members.gallery, start), shape=(total, total))
    expanded = sparse.csr_array(_first(nearest, settings.k2) @ encodings)
    expanded.data = (expanded.data / min(settings.k2, nearest.images.shape[1])).astype(np.float32)
    expanded.sort_indices()
    return Encodings(
        query=expanded[:queries],
        gallery=expanded[queries:],
        furthest=furthest[:queries],
        settings=settings,
    )


def reranked_blocks(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    encodings: Encodings,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[slice, np.ndarray]]:
    """As `distance_blocks`, with re-ranked distances; those of junk are meaningless."""
    everything = slice(0, len(gallery))
    for rows, distances in distance_blocks(query, gallery, block_bytes=block_bytes):
        distances += 1
        distances *= encodings.gains[rows, None].astype(np.float32)
        distances -= encodings.offset_block(rows, everything)
        yield rows, distances


def reranked_distances(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    *,
    settings: Reranking | None = None,
) -> Float[np.ndarray, "Q G"]:
    """Dense re-ranked distances, for small data sets; junk must be removed before."""
    encodings = compute_encodings(
        query, gallery, excluded=np.empty(0, np.int64), settings=settings or Reranking()
    )
    blocks = reranked_blocks(query, gallery, encodings)
    return np.concatenate([block.copy() for _, block in blocks])
