"""Ranking by Ray tasks over features in parts on disk: each task counts in a chunk of the gallery.

Counts are whole numbers that add up, so the scores do not depend on the tasks: not on how many
there are, in which order they end, or how often one is repeated after its node was lost.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.records import JUNK_PID
from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule
from muva.retrieval.camera_rule import labels as identity_labels
from muva.retrieval.distances import even_slices
from muva.retrieval.features import Features, allocate_or_memmap
from muva.retrieval.match_ranks import (
    FeatureChunk,
    MatchRanks,
    Pairs,
    Thresholds,
    count_nearer_in_chunk,
    matching_and_ignored_pairs,
    pair_similarities,
)
from muva.retrieval.nearest import Nearest, compare
from muva.retrieval.reranking import Encodings, Reranking, encode, members_of, who_counts
from workflows.runtime.tasks import completed_tasks, run_tasks, shared

PART_IMAGES = 512
"""Images that a task embeds and writes together."""
CHUNK_IMAGES = 16_384
"""Gallery images that a task counts in: 128 MiB of features 2,048 wide."""


@dataclass(frozen=True)
class FeatureParts:
    """The features of an artifact, image after image in parts of `PART_IMAGES`."""

    artifact: Artifact

    @staticmethod
    def name(first: int) -> str:
        """The file of the part that begins with this image."""
        return f"part-{first:09d}.npy"

    def write(self, first: int, features: np.ndarray) -> None:
        """Keep one part."""
        buffer = io.BytesIO()
        np.save(buffer, features, allow_pickle=False)
        self.artifact.store.write(self.artifact.key(self.name(first)), buffer.getvalue())

    @cached_property
    def firsts(self) -> np.ndarray:
        """Each part's first image, and the number of all images."""
        manifest = self.artifact.manifest(format_version=formats.FEATURES)
        assert manifest is not None, self.artifact.address
        images = manifest["summary"]["images"]
        return np.append(np.arange(0, images, PART_IMAGES), images)

    def read(self, images: np.ndarray) -> np.ndarray:
        """(images, width): those of these numbers, in this order, in a mapped file where many.

        Raises MuvaError for a damaged part.
        """
        part_of = np.searchsorted(self.firsts, images, side="right") - 1
        features: np.ndarray | None = None
        for part in np.unique(part_of):
            places = np.flatnonzero(part_of == part)
            values = self._part(int(self.firsts[part]))
            if features is None:
                features = allocate_or_memmap((len(images), values.shape[1]), values.dtype)
            features[places] = values[images[places] - self.firsts[part]]
        assert features is not None, "no images are asked for"
        return features

    def _part(self, first: int) -> np.ndarray:
        name = self.name(first)
        try:
            path = self.artifact.store.path(self.artifact.key(name))
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise MuvaError(
                f"{self.artifact.uri}: {name} is damaged ({error}). Delete the artifact and "
                "evaluate again"
            ) from error


@dataclass(frozen=True)
class _Chunk:
    """Images that follow each other in the gallery, or among queries and gallery."""

    parts: FeatureParts
    images: np.ndarray
    """Their numbers in the parts."""
    first: int
    """The place of the first one."""

    @property
    def place(self) -> slice:
        return slice(self.first, self.first + len(self.images))

    def side(self, name: str) -> Side:
        """Their features, read in a task."""
        return Side(self.parts.read(self.images), name, first=self.first)


def _chunks(parts: FeatureParts, images: np.ndarray, largest: int) -> list[_Chunk]:
    return [_Chunk(parts, images[s], s.start) for s in even_slices(len(images), largest)]


def ranks_of(
    parts: FeatureParts,
    labels: Features,
    *,
    encodings: Encodings | None = None,
    chunk_images: int = CHUNK_IMAGES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[MatchRanks, CameraRule]:
    """The ranks of all matches; `labels` says labels is on the images, its features are not read.

    `encodings` re-rank. `tell` hears of gallery images that have been ranked, and of all. Needs a
    Ray cluster.
    """
    rule = camera_rule(labels)
    queries = _Chunk(parts, labels.queries, 0)
    matches, ignored = judged_pairs(rule, len(labels.queries))
    chunks = _chunks(parts, labels.gallery, chunk_images)
    similarities = run_tasks(
        _similarities, [(queries, chunk, matches.within(chunk.place)) for chunk in chunks]
    )
    thresholds = Thresholds.of(
        matches, np.concatenate(similarities), queries=len(labels.queries), shifts=encodings
    )
    common = shared((rule, thresholds, encodings))
    nearer = np.zeros((len(matches.query), rule.camera_count), np.int64)
    calls = [(queries, chunk, common, ignored.within(chunk.place)) for chunk in chunks]
    ranked = 0
    for number, counts in completed_tasks(_count, calls):
        nearer += counts
        ranked += len(chunks[number].images)
        on_progress(ranked, len(labels.gallery))
    return thresholds.ranks(nearer, rule), rule


def encodings_by_tasks(
    parts: FeatureParts,
    labels: Features,
    *,
    settings: Reranking,
    chunk_images: int = CHUNK_IMAGES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Encodings:
    """As `compute_encodings`, the images compared by tasks: the same numbers for any of them.

    `tell` hears of pairs of images that have been compared, and of all. Needs a Ray cluster.
    """
    images = np.concatenate([labels.queries, labels.gallery])
    junk = np.flatnonzero(labels.pids[labels.gallery] == JUNK_PID)
    counts = who_counts(len(labels.queries), len(labels.gallery), junk)
    nearest = Nearest.of(len(images), count=min(settings.neighbours, int(counts.sum())))
    chunks = _chunks(parts, images, chunk_images)
    common = shared(counts)
    pairs = list(combinations_with_replacement(chunks, 2))
    sizes = [len(one.images) * len(other.images) for one, other in pairs]
    calls = [(one, other, common, nearest.images.shape[1]) for one, other in pairs]
    compared = 0
    for number, neighbours in completed_tasks(_compare, calls):
        for place, some in neighbours:
            nearest.rows(place).merge(some)
        compared += sizes[number]
        on_progress(compared, sum(sizes))
    members = members_of(nearest, settings)
    cosines = np.empty(len(members.query))
    both = list(product(chunks, repeat=2))
    places = [members.among(one.place, other.place) for one, other in both]
    found = run_tasks(
        _similarities,
        [
            (one, other, members.take(here))
            for (one, other), here in zip(both, places, strict=True)
        ],
    )
    for here, values in zip(places, found, strict=True):
        cosines[here] = values
    return encode(nearest, members, cosines, queries=len(labels.queries), settings=settings)


def camera_rule(labels: Features) -> CameraRule:
    """Which images count for which query."""
    query, gallery = (
        identity_labels(
            pids=labels.pids[side],
            camids=None if labels.camids is None else labels.camids[side],
            ids=labels.ids[side],
            count=len(side),
            side=name,
        )
        for name, side in (("query", labels.queries), ("gallery", labels.gallery))
    )
    return CameraRule(query, gallery)


def _similarities(one: _Chunk, other: _Chunk, pairs: Pairs) -> np.ndarray:
    return pair_similarities(one.side("query_features"), other.side("gallery_features"), pairs)


def _count(
    queries: _Chunk,
    chunk: _Chunk,
    common: tuple[CameraRule, Thresholds, Encodings | None],
    ignored: Pairs,
) -> np.ndarray:
    rule, thresholds, encodings = common
    return count_nearer_in(
        queries.side("query_features"),
        chunk.side("gallery_features"),
        thresholds,
        ignored=ignored,
        rule=rule,
        rescoring=encodings,
    )


def _compare(
    one: _Chunk, other: _Chunk, counts: np.ndarray, neighbours: int
) -> list[tuple[slice, Nearest]]:
    """What the images of each chunk found in the other."""
    mine, of_mine = one.side("features"), Nearest.of(len(one.images), count=neighbours)
    found = [(one.place, of_mine)]
    theirs, of_theirs = mine, of_mine
    if other.first != one.first:
        theirs = other.side("features")
        of_theirs = NearestNeighbours.empty(len(other.images), count=neighbours)
        found.append((other.place, of_theirs))
    compare_chunks(mine, theirs, found_for_one=of_mine, found_for_other=of_theirs, included=counts)
    return found
