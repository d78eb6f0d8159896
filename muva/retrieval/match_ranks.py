"""Exact ranks of the true matches of each query, in a single pass over the gallery.

The rank of a match is one plus the number of images that are nearer to the query, so nearer images
are counted, and nothing is sorted or kept. A product in float32, or in bfloat16 on CPUs with
instructions for it, decides on which side of each match an image lies, unless the two are closer
than the proven error of that product; in those few cases, the similarity is computed in float64.
The ranks are therefore those of float64 cosines, independent of blocks, their order, threads and
kernels; ties are broken by gallery index. Re-ranking adds an offset to each cosine, computed in the
same way everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from muva.errors import MuvaError
from muva.retrieval.block_products import (
    FLOAT32_UNIT,
    MAX_DOUBTFUL,
    BlockProducts,
    bfloat16_is_fast,
    cosine_error,
)
from muva.retrieval.camera_rule import CameraRule
from muva.retrieval.counting import cosines, count_nearer
from muva.retrieval.distances import (
    BLOCK_BYTES,
    even_slices,
    feature_matrix,
    inverse_norms,
)

T = TypeVar("T")

_PAIRS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class MatchRanks:
    """The ranks of all matches; those of query i are at `start[i]` to `start[i + 1]`."""

    start: np.ndarray
    """(queries + 1,) int64."""
    ranks: np.ndarray
    """(matches,) int64 from 1, ascending for each query."""
    within: np.ndarray
    """(matches,): the ranks among images of the match's own camera."""
    cameras: np.ndarray
    """(matches,): index of that camera in `CameraRule.camids`."""

    def of(self, query: int) -> np.ndarray:
        """The ranks of one query's matches; empty if it has none."""
        return self.ranks[self.start[query] : self.start[query + 1]]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a gallery image, by index."""

    query: np.ndarray
    gallery: np.ndarray

    def select(self, places: np.ndarray | slice) -> Pairs:
        """The pairs at these positions."""
        return Pairs(self.query[places], self.gallery[places])

    def followed_by(self, other: Pairs) -> Pairs:
        """These pairs and others."""
        return Pairs(
            np.concatenate([self.query, other.query]), np.concatenate([self.gallery, other.gallery])
        )

    def within(self, gallery: slice) -> Pairs:
        """The pairs within a range of the gallery; requires pairs sorted by gallery image."""
        begin, end = np.searchsorted(self.gallery, (gallery.start, gallery.stop))
        return self.select(slice(int(begin), int(end)))

    def among(self, queries: slice, gallery: slice) -> np.ndarray:
        """Positions of the pairs within a range of queries and a range of gallery images."""
        inside = (self.query >= queries.start) & (self.query < queries.stop)
        inside &= (self.gallery >= gallery.start) & (self.gallery < gallery.stop)
        return np.flatnonzero(inside)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The cosines of some queries and some gallery images, with what is needed to compute them."""

    queries: slice
    gallery: slice
    near: np.ndarray
    """(queries, gallery) float32; -inf for pairs that do not count."""
    query_features: np.ndarray
    query_scales: np.ndarray
    gallery_features: np.ndarray
    gallery_scales: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The matches of each query, nearest first: the boundaries between which images are counted."""

    matches: Pairs
    similarity: np.ndarray
    """(matches,) float64: the cosine, or the re-ranked similarity."""
    start: np.ndarray
    """(queries + 1,): position of each query's first match."""

    @classmethod
    def of(
        cls,
        matches: Pairs,
        similarities: np.ndarray,
        *,
        queries: int,
        rescoring: AffineRescoring | None = None,
    ) -> Thresholds:
        """Sort matches by query, similarity and gallery index; `similarities` are their cosines."""
        similarity = similarities
        if rescoring is not None:
            similarity = similarities * rescoring.gains[matches.query] + rescoring.pair_offsets(
                matches
            )
        order = np.lexsort((matches.gallery, -similarity, matches.query))
        matches = matches.select(order)
        start = np.searchsorted(matches.query, np.arange(queries + 1))
        return cls(matches=matches, similarity=similarity[order], start=start)

    def ranks(self, nearer: np.ndarray, rule: CameraRule) -> MatchRanks:
        """The ranks, given the counts of `count_nearer_in_chunk` summed over the whole gallery."""
        before = np.cumsum(nearer, axis=0)
        earlier = np.concatenate([np.zeros((1, nearer.shape[1]), np.int64), before])[
            self.start[:-1]
        ]
        before -= np.repeat(earlier, np.diff(self.start), axis=0)
        cameras = rule.cameras[self.matches.gallery]
        return MatchRanks(
            start=self.start,
            ranks=before.sum(axis=1) + 1,
            within=before[np.arange(len(before)), cameras] + 1,
            cameras=cameras,
        )


@runtime_checkable
class AffineRescoring(Protocol):
    """Replaces the cosine by gain x cosine + offset: a gain per query, an offset per pair."""

    @property
    def gains(self) -> np.ndarray:
        """(queries,) float64, positive."""
        ...

    def offset_block(self, queries: slice, gallery: slice) -> np.ndarray:
        """(queries, gallery) float32, at most 1 in absolute value."""
        ...

    def pair_offsets(self, pairs: Pairs) -> np.ndarray:
        """(pairs,) float32, bitwise equal to those of the block."""
        ...


def check_widths(queries: FeatureChunk, galleries: FeatureChunk) -> None:
    """Raise MuvaError unless the features have the same width."""
    if queries.width != galleries.width:
        raise MuvaError(
            f"expected query and gallery features of the same width, found {queries.width} and "
            f"{galleries.width}. Both must come from the same model"
        )


def matching_and_ignored_pairs(rule: CameraRule, queries: int) -> tuple[Pairs, Pairs]:
    """The matching pairs, and the ignored pairs besides junk, both sorted by gallery image."""
    by_query = [rule.matches_and_ignored(index) for index in range(queries)]
    # A query without a match is in no metric, so its ignored images are not needed.
    sides = [matches for matches, _ in by_query], [i if len(m) else i[:0] for m, i in by_query]
    pairs = []
    for side in sides:
        pairs_of_side = Pairs(
            np.repeat(np.arange(queries), [len(row) for row in side]), np.concatenate(side)
        )
        pairs.append(pairs_of_side.select(np.argsort(pairs_of_side.gallery, kind="stable")))
    return pairs[0], pairs[1]


def pair_similarities(queries: FeatureChunk, chunk: FeatureChunk, pairs: Pairs) -> np.ndarray:
    """The float64 cosine of each pair; the images must be within the two chunks."""
    cosines_of_pairs = np.empty(len(pairs.query))
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for batch in even_slices(len(cosines_of_pairs), _PAIRS_AT_ONCE):
            batch_pairs = pairs.select(batch)
            query_rows = queries.at(batch_pairs.query - queries.first)
            gallery_rows = chunk.at(batch_pairs.gallery - chunk.first)
            run_in_threads(
                threads,
                cosines,
                [
                    (
                        *(query_rows.features, query_rows.scales, query_rows.places[thread_slice]),
                        *(
                            gallery_rows.features,
                            gallery_rows.scales,
                            gallery_rows.places[thread_slice],
                        ),
                        cosines_of_pairs[batch][thread_slice],
                    )
                    for thread_slice in thread_slices(len(batch_pairs.query))
                ],
            )
    return cosines_of_pairs


def count_nearer_in_chunk(
    queries: FeatureChunk,
    chunk: FeatureChunk,
    thresholds: Thresholds,
    *,
    ignored: Pairs,
    rule: CameraRule,
    rescoring: AffineRescoring | None = None,
    each_block: Callable[[Block], None] | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Count the images of a gallery chunk that are nearer than a match, but not than the next one.

    Returns (matches, cameras) int64, in the order of the thresholds and by the camera of the nearer
    image; the counts of all chunks of a gallery add up. `ignored` are the pairs of the whole
    gallery that do not count, sorted by gallery image. `each_block` is called with the cosines, as
    they are before `rescoring`, and must not change them.
    """
    width = queries.width
    matches_side = (thresholds.similarity, thresholds.matches.gallery)
    nearer = np.zeros((len(thresholds.similarity), rule.camera_count), np.int64)
    gains = np.ones(len(queries)) if rescoring is None else rescoring.gains
    rounding = 0.0 if rescoring is None else 4 * FLOAT32_UNIT * (gains + 1)  # and of the gain
    float32_error = cosine_error(width) if _moderate(queries) and _moderate(chunk) else 0.0
    cosines_only = each_block is None and rescoring is None
    bfloat16 = cosines_only and bfloat16_is_fast() and len(queries) * len(chunk) >= _MANY_PAIRS
    groups = even_slices(len(queries), block_bytes // (4 * width))
    done, total = 0, len(chunk) * len(groups)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for group in groups:
            query_block = queries.normalised(group)
            start = thresholds.start[group.start : group.stop + 1]
            exact, scales = queries.exact(group), queries.scales[group]
            columns = block_bytes // (4 * max(width, len(query_block)))
            blocks = _blocks(len(chunk), columns, probe=bfloat16 and group.start == 0)
            largest = max(block.stop - block.start for block in blocks)
            products = BlockProducts(query_block, columns=largest, bfloat16=bfloat16)
            for block in blocks:
                gallery_range = slice(chunk.first + block.start, chunk.first + block.stop)
                product = products.cosines(chunk.normalised(block))
                near = product.cosines
                near[:, _within(rule.junk, gallery_range) - gallery_range.start] = -np.inf
                near[_block_positions(ignored, group, gallery_range)] = -np.inf
                images, image_scales = chunk.exact(block), chunk.scales[block]
                if each_block is not None:
                    each_block(
                        Block(
                            queries=group,
                            gallery=gallery_range,
                            near=near,
                            query_features=exact,
                            query_scales=scales,
                            gallery_features=images,
                            gallery_scales=image_scales,
                        )
                    )
                errors, offsets = product.errors, _NO_OFFSETS
                if rescoring is not None:
                    offsets = rescoring.offset_block(group, gallery_range)
                    near *= gains[group, None].astype(np.float32)
                    near += offsets
                    errors = errors * gains[group] + np.asarray(rounding)[group]
                gallery_side = (
                    gallery_range.start,
                    images,
                    image_scales,
                    rule.cameras[gallery_range],
                )
                stages = product.relative_error, float32_error if products.bfloat16 else 0.0
                query_sides = [
                    (
                        *(near[s], errors[s], *stages, start[s.start : s.stop + 1]),
                        *(exact[s], scales[s], gains[group][s], offsets[s]),
                    )
                    for s in thread_slices(len(near))
                ]
                doubtful = run_in_threads(
                    threads,
                    count_nearer,
                    [(*own, *gallery_side, *matches_side, nearer) for own in query_sides],
                )
                if sum(doubtful) > MAX_DOUBTFUL * near.size:
                    bfloat16 = False
                    products.use_float32()
                done += len(near[0])
                if progress is not None:
                    progress(done, total)
    return nearer


_NO_OFFSETS = np.empty((0, 0), np.float32)
_MANY_PAIRS = 10**6
"""Fewer pairs are not worth a look at how many are in doubt."""
_PROBED_COLUMNS = 512
"""Gallery images with which bfloat16 is tried."""


def _blocks(total: int, largest: int, *, probe: bool) -> list[slice]:
    """Even slices of the gallery; after a small first one to `probe`, where there is a choice."""
    first = min(total, largest, _PROBED_COLUMNS) if probe else 0
    rest = [
        slice(first + block.start, first + block.stop)
        for block in even_slices(total - first, largest)
    ]
    return [slice(0, first), *rest] if first else rest


def _moderate(side: FeatureChunk) -> bool:
    """Whether products of these features neither overflow nor vanish in float32."""
    return bool((side.scales > 1e-15).all() and (side.scales < 1e15).all())


def thread_slices(rows: int) -> list[slice]:
    """Divide rows among the threads."""
    return even_slices(rows, rows // torch.get_num_threads() + 1)


def run_in_threads(
    threads: ThreadPoolExecutor, kernel: Callable[..., T], arguments: Sequence[tuple[Any, ...]]
) -> list[T]:
    """The results of a compiled loop for each of these argument tuples, computed in parallel."""
    calls = [threads.submit(kernel, *call_arguments) for call_arguments in arguments]
    return [call.result() for call in calls]


class FeatureChunk:
    """Consecutive features, in place, with the factors that normalise their rows.

    `first` is the number of the first row in the gallery, or among all images.
    """

    def __init__(self, features: np.ndarray | Tensor, name: str, *, first: int = 0):
        self.features = feature_matrix(features, name=name)
        self.first = first
        self.scales = inverse_norms(self.features, name).numpy()

    def __len__(self) -> int:
        return len(self.features)

    @property
    def image_range(self) -> slice:
        """Range of the rows' numbers."""
        return slice(self.first, self.first + len(self))

    @property
    def width(self) -> int:
        """Dimension of a feature."""
        return self.features.shape[1]

    def exact(self, rows: slice) -> np.ndarray:
        """The rows without rounding, in float32 or float64."""
        return _exact(self.features[rows])

    def at(self, rows: np.ndarray) -> _RowSelection:
        """Some rows in place, or copies if they have to be converted."""
        features = self.features
        if features.dtype in (torch.float32, torch.float64) and features.is_contiguous():
            return _RowSelection(features.numpy(), self.scales, rows)
        copied = _exact(features[torch.from_numpy(rows)])
        return _RowSelection(copied, self.scales[rows], np.arange(len(rows)))

    def normalised(self, rows: slice) -> Tensor:
        """The rows with length 1 in float32; each number is rounded once or twice."""
        scales = torch.from_numpy(self.scales[rows])[:, None]
        chosen = self.features[rows]
        if chosen.dtype == torch.float64:
            return (chosen * scales).float()
        return chosen.float() * scales.float()


@dataclass(frozen=True)
class _RowSelection:
    """Rows of an array, by their positions."""

    features: np.ndarray
    scales: np.ndarray
    places: np.ndarray


def _exact(features: Tensor) -> np.ndarray:
    if features.dtype != torch.float64:
        features = features.float()
    return features.contiguous().numpy()


def _within(indices: np.ndarray, gallery_range: slice) -> np.ndarray:
    """The part of sorted gallery indices that lies in a range."""
    begin, end = np.searchsorted(indices, (gallery_range.start, gallery_range.stop))
    return indices[begin:end]


def _block_positions(
    pairs: Pairs, group: slice, gallery_range: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of pairs within a block of similarities."""
    pairs = pairs.within(gallery_range)
    inside = (pairs.query >= group.start) & (pairs.query < group.stop)
    return pairs.query[inside] - group.start, pairs.gallery[inside] - gallery_range.start
