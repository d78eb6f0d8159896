"""Removes identities from a data set: the remaining images are written to new shards."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from muva.config import PARTS
from muva.data import formats
from muva.data.artifacts import Artifact, fingerprint
from muva.data.protocols import read_trials, write_trials
from muva.data.records import LazyImage, Record
from muva.data.shards import Dataset, write_shards

_BATCH_IMAGES = 64
"""Number of adjacent images that are read together."""


@dataclass(frozen=True)
class DatasetWithout:
    """A data set without the identities in `pids`, stored beside the original."""

    dataset: Dataset
    pids: Collection[int]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it: the data set's own settings, and a hash of who was removed, not whom."""
        original = self.dataset.artifact
        manifest = original.manifest(format_version=formats.SHARDS)
        assert manifest is not None
        before = manifest["config"].get("people_forgotten", 0)
        return {
            **manifest["config"],
            "people_forgotten": before + len(self._removed),
            "remainder": fingerprint([original.address, self._removed]),
        }

    def write(self, artifact: Artifact) -> dict[str, Any]:
        """Writes it, and returns its manifest's summary; committing is left to the caller.

        The caller commits the artifact. The names of images that were quarantined at import are not
        copied. Raises MuvaError if a split would be left empty.
        """
        records = [record for record in _records(self.dataset) if record.pid not in self._removed]
        summary = write_shards(records, artifact=artifact, skipped=self.dataset.summary.skipped)
        if trials := read_trials(self.dataset):
            remaining = {record.image_id for record in records}
            kept = [
                replace(
                    trial,
                    query=tuple(
                        identifier for identifier in trial.query if identifier in remaining
                    ),
                    gallery=tuple(
                        identifier for identifier in trial.gallery if identifier in remaining
                    ),
                )
                for trial in trials
            ]
            write_trials(artifact, kept)
        return asdict(summary)

    @property
    def _removed(self) -> list[int]:
        return sorted({int(pid) for pid in self.pids})


def _records(dataset: Dataset) -> Iterator[Record]:
    """The rows of a data set as records whose images are read on demand."""

    @functools.lru_cache(maxsize=2)
    def together(number: int) -> list[bytes]:
        first = number * _BATCH_IMAGES
        return dataset.read_images(range(first, min(first + _BATCH_IMAGES, dataset.summary.images)))

    def image(row: int) -> bytes:
        return together(row // _BATCH_IMAGES)[row % _BATCH_IMAGES]

    for row in dataset.rows().to_pylist():
        boxes = {part: tuple(row[f"box_{part}"]) if row[f"box_{part}"] else None for part in PARTS}
        yield Record(
            domain=dataset.name,
            image_id=row["image_id"],
            split=row["split"],
            pid=row["pid"],
            camid=row["camid"],
            source=LazyImage(
                file=Path(dataset.artifact.address), encoded=functools.partial(image, row["row"])
            ),
            boxes=boxes if row["has_boxes"] else None,
            caption=row["caption"],
        )
