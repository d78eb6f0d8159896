"""Features in parts on disk, ranked by Ray tasks: each counts in a stretch of the gallery.

Counts are whole numbers that add up, so the figures do not depend on the tasks: not on how many
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
import ray
import torch

from muva.data.artifacts import Artifact
from muva.data.records import JUNK_PID
from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule, checked_labels
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
from muva.retrieval.nearest import NearestNeighbours, compare_chunks
from muva.retrieval.reranking import (
    Encodings,
    Reranking,
    encode,
    expanded_reciprocal_members,
    included_images,
)
from workflows.runtime.cluster import ANYWHERE
from workflows.runtime.messages import results

FEATURES_FORMAT = 2
PART_IMAGES = 512
"""Images that a task embeds and writes together."""
STRETCH_IMAGES = 16_384
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
        manifest = self.artifact.manifest(format_version=FEATURES_FORMAT)
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
class _Stretch:
    """Images that follow each other in the gallery, or among queries and gallery."""

    parts: FeatureParts
    images: np.ndarray
    """Their numbers in the parts."""
    first: int
    """The place of the first one."""

    @property
    def place(self) -> slice:
        return slice(self.first, self.first + len(self.images))

    def side(self, name: str) -> FeatureChunk:
        """Their features, in a task: with as many threads as the task has cores."""
        torch.set_num_threads(1)
        return FeatureChunk(self.parts.read(self.images), name, first=self.first)


def _stretches(parts: FeatureParts, images: np.ndarray, largest: int) -> list[_Stretch]:
    return [_Stretch(parts, images[s], s.start) for s in even_slices(len(images), largest)]


def ranks_of(
    parts: FeatureParts,
    who: Features,
    *,
    encodings: Encodings | None = None,
    stretch_images: int = STRETCH_IMAGES,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[MatchRanks, CameraRule]:
    """The ranks of all matches; `who` says who is on the images, its features are not read.

    `encodings` re-rank. `tell` hears of gallery images that have been ranked, and of all. Needs a
    Ray cluster.
    """
    rule = camera_rule(who)
    queries = _Stretch(parts, who.queries, 0)
    matches, ignored = matching_and_ignored_pairs(rule, len(who.queries))
    stretches = _stretches(parts, who.gallery, stretch_images)
    similarities = results(
        [
            _similarities.remote(queries, stretch, matches.within(stretch.place))
            for stretch in stretches
        ]
    )
    thresholds = Thresholds.of(
        matches, np.concatenate(similarities), queries=len(who.queries), rescoring=encodings
    )
    shared = ray.put((rule, thresholds, encodings))
    nearer = np.zeros((len(matches.query), rule.camera_count), np.int64)
    tasks = {
        _count.remote(queries, stretch, shared, ignored.within(stretch.place)): len(stretch.images)
        for stretch in stretches
    }
    for images, counts in _as_they_end(tasks):
        nearer += counts
        tell(images, len(who.gallery))
    return thresholds.ranks(nearer, rule), rule


def encodings_by_tasks(
    parts: FeatureParts,
    who: Features,
    *,
    settings: Reranking,
    stretch_images: int = STRETCH_IMAGES,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Encodings:
    """As `compute_encodings`, the images compared by tasks: the same numbers for any of them.

    `tell` hears of pairs of images that have been compared, and of all. Needs a Ray cluster.
    """
    images = np.concatenate([who.queries, who.gallery])
    junk = np.flatnonzero(who.pids[who.gallery] == JUNK_PID)
    counts = included_images(len(who.queries), len(who.gallery), junk)
    nearest = NearestNeighbours.empty(
        len(images), count=min(settings.neighbours, int(counts.sum()))
    )
    stretches = _stretches(parts, images, stretch_images)
    shared = ray.put(counts)
    tasks, total = {}, 0
    for one, other in combinations_with_replacement(stretches, 2):
        task = _compare.remote(one, other, shared, nearest.images.shape[1])
        size = len(one.images) * len(other.images)
        tasks[task], total = size, total + size
    for done, found in _as_they_end(tasks):
        for place, some in found:
            nearest.rows(place).merge(some)
        tell(done, total)
    members = expanded_reciprocal_members(nearest, settings)
    cosines = np.empty(len(members.query))
    both = list(product(stretches, repeat=2))
    places = [members.among(one.place, other.place) for one, other in both]
    found = results(
        [
            _similarities.remote(one, other, members.select(here))
            for (one, other), here in zip(both, places, strict=True)
        ]
    )
    for here, values in zip(places, found, strict=True):
        cosines[here] = values
    return encode(nearest, members, cosines, queries=len(who.queries), settings=settings)


def camera_rule(who: Features) -> CameraRule:
    """Which images count for which query."""
    query, gallery = (
        checked_labels(
            pids=who.pids[side],
            camids=None if who.camids is None else who.camids[side],
            ids=who.ids[side],
            count=len(side),
            side=name,
        )
        for name, side in (("query", who.queries), ("gallery", who.gallery))
    )
    return CameraRule(query, gallery)


def _as_they_end(size_of: dict[ray.ObjectRef, int]) -> Iterator[tuple[int, Any]]:
    """The results of tasks, each let go once it is used; with the sizes of all that have ended."""
    done = 0
    while size_of:
        [task], _ = ray.wait([*size_of], num_returns=1)
        [result] = results([task])
        done += size_of.pop(task)
        yield done, result


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _similarities(one: _Stretch, other: _Stretch, pairs: Pairs) -> np.ndarray:
    return pair_similarities(one.side("query_features"), other.side("gallery_features"), pairs)


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _count(
    queries: _Stretch,
    stretch: _Stretch,
    shared: tuple[CameraRule, Thresholds, Encodings | None],
    ignored: Pairs,
) -> np.ndarray:
    rule, thresholds, encodings = shared
    return count_nearer_in_chunk(
        queries.side("query_features"),
        stretch.side("gallery_features"),
        thresholds,
        ignored=ignored,
        rule=rule,
        rescoring=encodings,
    )


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _compare(
    one: _Stretch, other: _Stretch, counts: np.ndarray, neighbours: int
) -> list[tuple[slice, NearestNeighbours]]:
    """What the images of each stretch found in the other."""
    mine, of_mine = one.side("features"), NearestNeighbours.empty(len(one.images), count=neighbours)
    found = [(one.place, of_mine)]
    theirs, of_theirs = mine, of_mine
    if other.first != one.first:
        theirs = other.side("features")
        of_theirs = NearestNeighbours.empty(len(other.images), count=neighbours)
        found.append((other.place, of_theirs))
    compare_chunks(mine, theirs, found_for_one=of_mine, found_for_other=of_theirs, included=counts)
    return found
