"""The ranks of the queries' true matches, exactly, while the gallery is read once.

A match ranks behind the images that are nearer to the query, so these are counted, and nothing is
sorted or kept. A float32 product tells on which side of each match an image lies, unless it lies
within that product's proven error of it: the similarity of those few is computed in float64. The
ranks are therefore those of float64 cosines, whatever the blocks, their order, the threads and the
kernels; equal cosines rank by gallery index. Re-ranking adds a shift to each cosine, in the same
way everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule
from muva.retrieval.counting import cosines, count_nearer
from muva.retrieval.distances import (
    BLOCK_BYTES,
    even_slices,
    feature_matrix,
    full_precision,
    inverse_norms,
)

_UNIT = 2.0**-24
"""Unit roundoff of float32."""
_PAIRS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class MatchRanks:
    """The ranks of each query's matches, those of query i at `start[i]` to `start[i + 1]`."""

    start: np.ndarray
    """(queries + 1,) int64."""
    ranks: np.ndarray
    """(matches,) int64 from 1, ascending within a query."""
    within: np.ndarray
    """(matches,): the ranks among the images of the match's own camera alone."""
    cameras: np.ndarray
    """(matches,): that camera, as `CameraRule.cameras` numbers it."""

    def of(self, query: int) -> np.ndarray:
        """The ranks of one query's matches; empty where it has none."""
        return self.ranks[self.start[query] : self.start[query + 1]]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and a gallery image."""

    query: np.ndarray
    gallery: np.ndarray

    def select(self, places: np.ndarray | slice) -> Pairs:
        """Some of them."""
        return Pairs(self.query[places], self.gallery[places])

    def within(self, gallery: slice) -> Pairs:
        """Those of a stretch of the gallery; they must be sorted by gallery image."""
        begin, end = np.searchsorted(self.gallery, (gallery.start, gallery.stop))
        return self.select(slice(int(begin), int(end)))

    def among(self, queries: slice, gallery: slice) -> np.ndarray:
        """Places of those of two stretches."""
        inside = (self.query >= queries.start) & (self.query < queries.stop)
        inside &= (self.gallery >= gallery.start) & (self.gallery < gallery.stop)
        return np.flatnonzero(inside)


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The matches of each query, nearest first: where the gallery is to be counted."""

    matches: Pairs
    similarity: np.ndarray
    """(matches,) float64: the cosine, or what re-ranking makes of it."""
    start: np.ndarray
    """(queries + 1,): each query's first match."""

    @classmethod
    def of(
        cls,
        matches: Pairs,
        similarities: np.ndarray,
        *,
        queries: int,
        rescoring: AffineRescoring | None = None,
    ) -> Thresholds:
        """Sorted by query, closeness and gallery index; `similarities` are cosines."""
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
        """Each match behind all that `count_nearer_in_chunk` has counted, in the whole gallery."""
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
    """Ranks by gain x cosine + shift instead: a gain for each query, a shift for each pair."""

    @property
    def gains(self) -> np.ndarray:
        """(queries,) float64, positive."""
        ...

    def offset_block(self, queries: slice, gallery: slice) -> np.ndarray:
        """(queries, gallery) float32, at most 1 in size."""
        ...

    def pair_offsets(self, pairs: Pairs) -> np.ndarray:
        """(pairs,) float32: bit for bit the block's."""
        ...


def match_ranks(
    query: np.ndarray | Tensor,
    gallery: np.ndarray | Tensor,
    rule: CameraRule,
    *,
    rescoring: AffineRescoring | None = None,
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> MatchRanks:
    """Ranks by cosine similarity, of the gallery images that count for each query.

    Features are (images, width) of any length, and may be memory-mapped. `rescoring` rank otherwise.
    `block_bytes` bounds a block of similarities, and a block of features beside it; `progress`
    hears of gallery images.
    Raises MuvaError for features that do not belong together, and for NaN and infinity.
    """
    queries, galleries = (
        FeatureChunk(query, "query_features"),
        FeatureChunk(gallery, "gallery_features"),
    )
    check_widths(queries, galleries)
    matches, ignored = matching_and_ignored_pairs(rule, len(queries))
    similarities = pair_similarities(queries, galleries, matches)
    thresholds = Thresholds.of(matches, similarities, queries=len(query), rescoring=rescoring)
    nearer = count_nearer_in_chunk(
        queries,
        galleries,
        thresholds,
        ignored=ignored,
        rule=rule,
        rescoring=rescoring,
        block_bytes=block_bytes,
        progress=progress,
    )
    return thresholds.ranks(nearer, rule)


def check_widths(queries: FeatureChunk, galleries: FeatureChunk) -> None:
    """MuvaError unless the features can be compared."""
    if queries.width != galleries.width:
        raise MuvaError(
            f"query features are {queries.width} wide, gallery features {galleries.width}: both "
            "must come from the same model"
        )


def matching_and_ignored_pairs(rule: CameraRule, queries: int) -> tuple[Pairs, Pairs]:
    """The pairs that match, and those that do not count, besides junk; sorted by gallery image."""
    by_query = [rule.matches_and_ignored(index) for index in range(queries)]
    # A query without a match counts nowhere: what it ignores is of no use.
    sides = [matches for matches, _ in by_query], [i if len(m) else i[:0] for m, i in by_query]
    pairs = []
    for side in sides:
        pairs_of_side = Pairs(
            np.repeat(np.arange(queries), [len(row) for row in side]), np.concatenate(side)
        )
        pairs.append(pairs_of_side.select(np.argsort(pairs_of_side.gallery, kind="stable")))
    return pairs[0], pairs[1]


def pair_similarities(queries: FeatureChunk, chunk: FeatureChunk, pairs: Pairs) -> np.ndarray:
    """The float64 cosine of each pair, whose images are within the two stretches."""
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
    block_bytes: int = BLOCK_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """How many images of a stretch of the gallery are nearer than a match, but not than the next.

    (matches, cameras) int64, in the thresholds' order, by the camera of what is nearer; counts of
    stretches that make up a gallery add up. `ignored`: pairs that do not count, of the whole
    gallery, sorted by gallery image.
    """
    width = queries.width
    matches_side = (thresholds.similarity, thresholds.matches.gallery)
    nearer = np.zeros((len(thresholds.similarity), rule.camera_count), np.int64)
    gains = np.ones(len(queries)) if rescoring is None else rescoring.gains
    errors = cosine_error(width) * gains
    if rescoring is not None:  # each operation rounds, and so does the gain
        errors += 4 * _UNIT * (gains + 1)
    groups = even_slices(len(queries), block_bytes // (4 * width))
    done, total = 0, len(chunk) * len(groups)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for group in groups:
            query_block = queries.normalised(group)
            start = thresholds.start[group.start : group.stop + 1]
            exact, scales = queries.exact(group), queries.scales[group]
            blocks = even_slices(len(chunk), block_bytes // (4 * max(width, len(query_block))))
            buffer = torch.empty(
                len(query_block) * max(block.stop - block.start for block in blocks)
            )
            for block in blocks:
                gallery_range = slice(chunk.first + block.start, chunk.first + block.stop)
                near = similarity_block(query_block, chunk.normalised(block), buffer)
                offsets = _NO_OFFSETS
                if rescoring is not None:
                    offsets = rescoring.offset_block(group, gallery_range)
                    near *= gains[group, None].astype(np.float32)
                    near += offsets
                near[:, _within(rule.junk, gallery_range) - gallery_range.start] = -np.inf
                near[_block_positions(ignored, group, gallery_range)] = -np.inf
                gallery_side = (
                    gallery_range.start,
                    chunk.exact(block),
                    chunk.scales[block],
                    rule.cameras[gallery_range],
                )
                query_sides = [
                    (
                        *(near[s], errors[group][s], start[s.start : s.stop + 1]),
                        *(exact[s], scales[s], gains[group][s], offsets[s]),
                    )
                    for s in thread_slices(len(near))
                ]
                run_in_threads(
                    threads,
                    count_nearer,
                    [(*own, *gallery_side, *matches_side, nearer) for own in query_sides],
                )
                done += len(near[0])
                if progress is not None:
                    progress(done, total)
    return nearer


_NO_OFFSETS = np.empty((0, 0), np.float32)


def similarity_block(one: Tensor, other: Tensor, buffer: Tensor) -> np.ndarray:
    """The products of all rows with all, float32, in the buffer."""
    products = buffer[: len(one) * len(other)].view(len(one), -1)
    with full_precision():
        torch.mm(one, other.T, out=products)
    return products.numpy()


def thread_slices(rows: int) -> list[slice]:
    """So many rows, one stretch of them for each thread."""
    return even_slices(rows, rows // torch.get_num_threads() + 1)


def run_in_threads(
    threads: ThreadPoolExecutor, kernel: Callable[..., None], arguments: Sequence[tuple[Any, ...]]
) -> None:
    """Calls a compiled loop with each of these arguments, side by side."""
    for call in [threads.submit(kernel, *call_arguments) for call_arguments in arguments]:
        call.result()


class FeatureChunk:
    """Features where they are, and the scales that make their rows' length 1.

    `first`: the number of a stretch's first row, in the gallery or among all images.
    """

    def __init__(self, features: np.ndarray | Tensor, name: str, *, first: int = 0):
        self.features = feature_matrix(features, name=name)
        self.first = first
        self.scales = inverse_norms(self.features, name).numpy()

    def __len__(self) -> int:
        return len(self.features)

    @property
    def image_range(self) -> slice:
        """The rows' numbers."""
        return slice(self.first, self.first + len(self))

    @property
    def width(self) -> int:
        """Numbers of a feature."""
        return self.features.shape[1]

    def exact(self, rows: slice) -> np.ndarray:
        """The rows as they are, in a type that holds them exactly and is computed with."""
        return _exact(self.features[rows])

    def at(self, rows: np.ndarray) -> _RowSelection:
        """Some rows where they are, or copies of them where they have to be converted."""
        features = self.features
        if features.dtype in (torch.float32, torch.float64) and features.is_contiguous():
            return _RowSelection(features.numpy(), self.scales, rows)
        copied = _exact(features[torch.from_numpy(rows)])
        return _RowSelection(copied, self.scales[rows], np.arange(len(rows)))

    def normalised(self, rows: slice) -> Tensor:
        """The rows with length 1, float32: each number rounded once or twice."""
        scales = torch.from_numpy(self.scales[rows])[:, None]
        chosen = self.features[rows]
        if chosen.dtype == torch.float64:
            return (chosen * scales).float()
        return chosen.float() * scales.float()


@dataclass(frozen=True)
class _RowSelection:
    """Rows of an array, by their places in it."""

    features: np.ndarray
    scales: np.ndarray
    places: np.ndarray


def _exact(features: Tensor) -> np.ndarray:
    if features.dtype != torch.float64:
        features = features.float()
    return features.contiguous().numpy()


def cosine_error(width: int) -> float:
    """How far a float32 cosine may be from the exact one, and a little more.

    A sum of n products in any order errs by at most n u / (1 - n u) of the sum of their sizes
    (Higham, Accuracy and Stability of Numerical Algorithms, Sec. 3.1), which is at most 1 here;
    rounding scale and numbers on both sides adds 4 u.
    """
    terms = (width + 8) * _UNIT
    return terms / (1 - terms)


def _within(indices: np.ndarray, gallery_range: slice) -> np.ndarray:
    """Of sorted gallery indices those of a stretch."""
    begin, end = np.searchsorted(indices, (gallery_range.start, gallery_range.stop))
    return indices[begin:end]


def _block_positions(
    pairs: Pairs, group: slice, gallery_range: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of pairs in a block of similarities."""
    pairs = pairs.within(gallery_range)
    inside = (pairs.query >= group.start) & (pairs.query < group.stop)
    return pairs.query[inside] - group.start, pairs.gallery[inside] - gallery_range.start
