"""A data set without some of its people: what is left of its shards, written anew."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from muva.config import PARTS
from muva.data.artifacts import Artifact, fingerprint
from muva.data.protocols import read_trials, write_trials
from muva.data.records import Excerpt, Record
from muva.data.shards import SHARD_FORMAT, Dataset, write_shards

_AT_ONCE = 64
"""Images that are read together: as many as lie together."""


def without_people(dataset: Dataset, pids: Collection[int]) -> Artifact:
    """The complete artifact of a data set without the people of these pids.

    It is written beside the one there is, which stays. Its address is a hash of the old one and of
    who is gone; how many that are is all that its manifest tells of them. Names of images that were
    set aside at the import are not taken over. Raises MuvaError where a split would be left empty.
    """
    manifest = dataset.artifact.manifest(format_version=SHARD_FORMAT)
    assert manifest is not None
    gone = sorted({int(pid) for pid in pids})
    artifact = Artifact(
        dataset.artifact.store,
        "datasets",
        dataset.artifact.name,
        fingerprint([dataset.artifact.address, gone]),
    )
    records = [record for record in _records(dataset) if record.pid not in gone]
    summary = write_shards(records, artifact=artifact)
    if trials := read_trials(dataset):
        left = {record.image_id for record in records}
        kept = [
            replace(
                trial,
                query=tuple(one for one in trial.query if one in left),
                gallery=tuple(one for one in trial.gallery if one in left),
            )
            for trial in trials
        ]
        write_trials(artifact, kept)
    before = manifest["config"].get("people_forgotten", 0)
    artifact.commit(
        format_version=SHARD_FORMAT,
        config={**manifest["config"], "people_forgotten": before + len(gone)},
        inputs={},
        summary=asdict(summary),
    )
    return artifact


def _records(dataset: Dataset) -> Iterator[Record]:
    """The rows as records, whose images are read when they are wanted."""

    @functools.lru_cache(maxsize=2)
    def together(number: int) -> list[bytes]:
        first = number * _AT_ONCE
        return dataset.read_images(range(first, min(first + _AT_ONCE, dataset.summary.images)))

    def image(row: int) -> bytes:
        return together(row // _AT_ONCE)[row % _AT_ONCE]

    for row in dataset.rows().to_pylist():
        boxes = {part: tuple(row[f"box_{part}"]) if row[f"box_{part}"] else None for part in PARTS}
        yield Record(
            domain=dataset.name,
            image_id=row["image_id"],
            split=row["split"],
            pid=row["pid"],
            camid=row["camid"],
            source=Excerpt(
                file=Path(dataset.artifact.address), encoded=functools.partial(image, row["row"])
            ),
            boxes=boxes if row["has_boxes"] else None,
            caption=row["caption"],
        )
