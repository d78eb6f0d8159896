"""Features in parts on disk, ranked by Ray tasks: each counts in a stretch of the gallery.

Counts are whole numbers that add up, so the figures do not depend on the tasks: not on how many
there are, in which order they end, or how often one is repeated after its node was lost.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from muva.data.artifacts import Artifact
from muva.errors import MuvaError
from muva.retrieval.camera_rule import CameraRule, labels
from muva.retrieval.distances import even_slices
from muva.retrieval.features import Features
from muva.retrieval.match_ranks import (
    MatchRanks,
    Pairs,
    Side,
    Thresholds,
    count_nearer_in,
    judged_pairs,
    pair_similarities,
)
from workflows.board import results
from workflows.cluster import ANYWHERE

FEATURES_FORMAT = 2
PART_IMAGES = 512
"""Images that a task embeds and writes together."""
STRETCH_IMAGES = 16_384
"""Gallery images that a task counts in: 128 MiB of features 2,048 wide."""
HELD_BYTES = 256 * 2**20
"""Features up to this size are held in memory, others in a file that is mapped."""


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
                features = _empty((len(images), values.shape[1]), values.dtype)
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


def ranks_of(
    parts: FeatureParts,
    who: Features,
    *,
    stretch_images: int = STRETCH_IMAGES,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[MatchRanks, CameraRule]:
    """The ranks of all matches; `who` says who is on the images, its features are not read.

    `tell` hears of gallery images that have been ranked, and of all. Needs a Ray cluster.
    """
    asking, answering = who.queries, who.gallery
    query, gallery = (
        labels(
            pids=who.pids[side],
            camids=None if who.camids is None else who.camids[side],
            ids=who.ids[side],
            count=len(side),
            side=name,
        )
        for name, side in (("query", asking), ("gallery", answering))
    )
    rule = CameraRule(query, gallery)
    matches, ignored = judged_pairs(rule, len(query))
    stretches = even_slices(len(gallery), stretch_images)
    similarities = results(
        [
            _similarities.remote(
                parts, asking, answering[s], s.start, matches.within(s.start, s.stop)
            )
            for s in stretches
        ]
    )
    thresholds = Thresholds.of(matches, np.concatenate(similarities), queries=len(query))
    shared = ray.put((rule, thresholds))
    images_of = {
        _count.remote(
            parts, asking, answering[s], s.start, shared, ignored.within(s.start, s.stop)
        ): (s.stop - s.start)
        for s in stretches
    }
    nearer = np.zeros((len(matches.query), rule.camera_count), np.int64)
    done = 0
    while images_of:  # counts are added as they come, and let go
        [task], _ = ray.wait([*images_of], num_returns=1)
        [counts] = results([task])
        nearer += counts
        done += images_of.pop(task)
        tell(done, len(gallery))
    return thresholds.ranks(nearer, rule), rule


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _similarities(
    parts: FeatureParts, asking: np.ndarray, answering: np.ndarray, first: int, pairs: Pairs
) -> np.ndarray:
    queries, stretch = _sides(parts, asking, answering, first)
    return pair_similarities(queries, stretch, pairs)


@ray.remote(max_retries=3, scheduling_strategy=ANYWHERE)
def _count(
    parts: FeatureParts,
    asking: np.ndarray,
    answering: np.ndarray,
    first: int,
    shared: tuple[CameraRule, Thresholds],
    ignored: Pairs,
) -> np.ndarray:
    rule, thresholds = shared
    queries, stretch = _sides(parts, asking, answering, first)
    return count_nearer_in(queries, stretch, thresholds, ignored=ignored, rule=rule)


def _sides(
    parts: FeatureParts, asking: np.ndarray, answering: np.ndarray, first: int
) -> tuple[Side, Side]:
    torch.set_num_threads(1)  # as many as the task has cores
    return (
        Side(parts.read(asking), "query_features"),
        Side(parts.read(answering), "gallery_features", first=first),
    )


def _empty(shape: Sequence[int], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= HELD_BYTES:
        return np.empty(shape, dtype)
    with tempfile.NamedTemporaryFile(prefix="muva-features-", suffix=".npy") as file:
        # The mapping outlives the file's name: it goes with the last one that uses it.
        return np.lib.format.open_memmap(Path(file.name), "w+", dtype, tuple(shape))
