"""Ranking by Ray tasks over features on disk: each task counts in one chunk of the gallery.

Counts are integers that are added up, so that the scores do not depend on the number of tasks, on
the order in which they end, or on how often one is repeated after its node was lost.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product

import numpy as np

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.records import JUNK_PID
from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule, checked_rule
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
from muva.retrieval.results import Verification
from muva.retrieval.verification import (
    ImpostorCounts,
    PairPlan,
    block_counter,
    counted,
    impostor_sample,
)
from workflows.runtime.tasks import completed_tasks, run_tasks, shared

PART_IMAGES = 512
"""Images per part, which a task embeds and writes together."""
CHUNK_IMAGES = 16_384
"""Gallery images per task: 128 MiB of features with 2,048 dimensions."""


@dataclass(frozen=True)
class FeatureParts:
    """The features of an artifact, stored in parts of `PART_IMAGES` images."""

    artifact: Artifact

    @staticmethod
    def name(first: int) -> str:
        """The file name of the part that begins with this image."""
        return f"part-{first:09d}.npy"

    def write(self, first: int, features: np.ndarray) -> None:
        """Write one part."""
        buffer = io.BytesIO()
        np.save(buffer, features, allow_pickle=False)
        self.artifact.store.write(self.artifact.key(self.name(first)), buffer.getvalue())

    @cached_property
    def firsts(self) -> np.ndarray:
        """The first image of each part, followed by the number of all images."""
        manifest = self.artifact.manifest(format_version=formats.FEATURES)
        assert manifest is not None, self.artifact.address
        images = manifest["summary"]["images"]
        return np.append(np.arange(0, images, PART_IMAGES), images)

    @cached_property
    def width(self) -> int:
        """Dimension of a feature."""
        return self._part(0).shape[1]

    def read(self, images: np.ndarray) -> np.ndarray:
        """(images, dimensions): the features of these images, in this order.

        Large arrays are memory-mapped files. Raises MuvaError for a damaged part.
        """
        part_of = np.searchsorted(self.firsts, images, side="right") - 1
        features: np.ndarray | None = None
        for part in np.unique(part_of):
            indices = np.flatnonzero(part_of == part)
            values = self._part(int(self.firsts[part]))
            if features is None:
                features = allocate_or_memmap((len(images), values.shape[1]), values.dtype)
            features[indices] = values[images[indices] - self.firsts[part]]
        assert features is not None, "expected at least one image"
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
    """Consecutive images of the gallery, or of queries and gallery together."""

    parts: FeatureParts
    images: np.ndarray
    """Their indices into the parts."""
    first: int
    """The position of the first one."""

    @property
    def place(self) -> slice:
        return slice(self.first, self.first + len(self.images))

    def features(self, name: str) -> FeatureChunk:
        """Their features, read in a task."""
        return FeatureChunk(self.parts.read(self.images), name, first=self.first)


def _chunks(parts: FeatureParts, images: np.ndarray, largest: int) -> list[_Chunk]:
    return [_Chunk(parts, images[s], s.start) for s in even_slices(len(images), largest)]


def ranks_of(
    parts: FeatureParts,
    labels: Features,
    *,
    encodings: Encodings | None = None,
    promised: Mapping[float, float] | None = None,
    chunk_images: int = CHUNK_IMAGES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[MatchRanks, CameraRule, Verification | None]:
    """The ranks of all matches, and the verification; the features in `labels` are not read.

    With `encodings`, the ranking is re-ranked; `promised` are the thresholds of the model's
    calibration. `on_progress` is called with the number of gallery
    images that have been ranked and of all. Needs a Ray cluster.
    """
    rule = camera_rule(labels)
    queries = _Chunk(parts, labels.queries, 0)
    matches, ignored = matching_and_ignored_pairs(rule, len(labels.queries))
    chunks = _chunks(parts, labels.gallery, chunk_images)
    sample = impostor_sample(rule, matches)
    pairs = [(matches.within(chunk.place), sample.within(chunk.place)) for chunk in chunks]
    found = run_tasks(
        similarities_in_chunk,
        [
            (queries, chunk, in_chunk.followed_by(sampled_in_chunk))
            for chunk, (in_chunk, sampled_in_chunk) in zip(chunks, pairs, strict=True)
        ],
    )
    matches_in = [len(in_chunk.query) for in_chunk, _ in pairs]
    similarities, sampled = (
        np.concatenate([values[some] for values, some in zip(found, parts_of, strict=True)])
        for parts_of in (
            [slice(count) for count in matches_in],
            [slice(count, None) for count in matches_in],
        )
    )
    thresholds = Thresholds.of(
        matches, similarities, queries=len(labels.queries), rescoring=encodings
    )

    def count(plan: PairPlan | None) -> tuple[np.ndarray, ImpostorCounts | None]:
        common = shared((rule, thresholds, encodings, plan))
        nearer = np.zeros((len(matches.query), rule.camera_count), np.int64)
        impostors = None if plan is None else ImpostorCounts.empty(plan)
        calls = [(queries, chunk, common, ignored.within(chunk.place)) for chunk in chunks]
        ranked = 0
        for number, (counts, impostors_in_chunk) in completed_tasks(count_in_chunk, calls):
            nearer += counts
            if impostors is not None and impostors_in_chunk is not None:
                impostors.merge(impostors_in_chunk)
            ranked += len(chunks[number].images)
            on_progress(ranked, len(labels.gallery))
        return nearer, impostors

    nearer, verification = counted(
        count, rule, matches, similarities, sampled, width=parts.width, promised=promised
    )
    return thresholds.ranks(nearer, rule), rule, verification


def encodings_by_tasks(
    parts: FeatureParts,
    labels: Features,
    *,
    settings: Reranking,
    chunk_images: int = CHUNK_IMAGES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Encodings:
    """Like `compute_encodings`, with identical results for any division into tasks.

    `on_progress` is called with the number of pairs of images that have been compared and of all.
    Needs a Ray cluster.
    """
    images = np.concatenate([labels.queries, labels.gallery])
    junk = np.flatnonzero(labels.pids[labels.gallery] == JUNK_PID)
    included = included_images(len(labels.queries), len(labels.gallery), junk)
    nearest = NearestNeighbours.empty(
        len(images), count=min(settings.neighbours, int(included.sum()))
    )
    chunks = _chunks(parts, images, chunk_images)
    common = shared(included)
    pairs = list(combinations_with_replacement(chunks, 2))
    sizes = [len(one.images) * len(other.images) for one, other in pairs]
    calls = [(one, other, common, nearest.images.shape[1]) for one, other in pairs]
    compared = 0
    for number, neighbours in completed_tasks(neighbours_between, calls):
        for place, found in neighbours:
            nearest.rows(place).merge(found)
        compared += sizes[number]
        on_progress(compared, sum(sizes))
    members = expanded_reciprocal_members(nearest, settings)
    cosines = np.empty(len(members.query))
    both = list(product(chunks, repeat=2))
    selections = [members.among(one.place, other.place) for one, other in both]
    values_of = run_tasks(
        similarities_in_chunk,
        [
            (one, other, members.select(selected))
            for (one, other), selected in zip(both, selections, strict=True)
        ],
    )
    for selected, values in zip(selections, values_of, strict=True):
        cosines[selected] = values
    return encode(nearest, members, cosines, queries=len(labels.queries), settings=settings)


def camera_rule(labels: Features) -> CameraRule:
    """The rules by which gallery images count for a query."""
    pids, camids, ids = labels.pids, labels.camids, labels.ids
    query, gallery = labels.queries, labels.gallery
    return checked_rule(
        query_pids=pids[query],
        query_camids=None if camids is None else camids[query],
        query_ids=ids[query],
        gallery_pids=pids[gallery],
        gallery_camids=None if camids is None else camids[gallery],
        gallery_ids=ids[gallery],
        queries=len(query),
        gallery=len(gallery),
    )


def similarities_in_chunk(one: _Chunk, other: _Chunk, pairs: Pairs) -> np.ndarray:
    """The cosine similarities of pairs of images of two chunks."""
    return pair_similarities(
        one.features("query_features"), other.features("gallery_features"), pairs
    )


def count_in_chunk(
    queries: _Chunk,
    chunk: _Chunk,
    common: tuple[CameraRule, Thresholds, Encodings | None, PairPlan | None],
    ignored: Pairs,
) -> tuple[np.ndarray, ImpostorCounts | None]:
    """For each match of a query, how many images of the chunk are nearer to the query; and the
    pairs of different people."""
    rule, thresholds, encodings, plan = common
    counts, each_block = block_counter(plan)
    nearer = count_nearer_in_chunk(
        queries.features("query_features"),
        chunk.features("gallery_features"),
        thresholds,
        ignored=ignored,
        rule=rule,
        rescoring=encodings,
        each_block=each_block,
    )
    return nearer, counts


def neighbours_between(
    one: _Chunk, other: _Chunk, included: np.ndarray, neighbours: int
) -> list[tuple[slice, NearestNeighbours]]:
    """The nearest neighbours of the images of each chunk in the other chunk."""
    mine = one.features("features")
    of_mine = NearestNeighbours.empty(len(one.images), count=neighbours)
    found = [(one.place, of_mine)]
    theirs, of_theirs = mine, of_mine
    if other.first != one.first:
        theirs = other.features("features")
        of_theirs = NearestNeighbours.empty(len(other.images), count=neighbours)
        found.append((other.place, of_theirs))
    compare_chunks(
        mine, theirs, found_for_one=of_mine, found_for_other=of_theirs, included=included
    )
    return found
