"""Pseudo-labels on disk: one Parquet part per shard, a row for each image and part of the body."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from muva.data.artifacts import Artifact
from muva.data.shards import Dataset
from muva.errors import MuvaError

LABEL_FORMAT = 1
"""Version of what `write_label_part` writes."""

_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("found", pa.bool_(), nullable=False),
        pa.field("box", pa.list_(pa.float32())),
        pa.field("score", pa.float32()),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("expert", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
)
_PART_KEY = re.compile(r"labels-(\d{5,})\.parquet")


def label_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of labels as a table with the right types."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=_SCHEMA)


def label_key(shard_index: int) -> str:
    """The key of a shard's labels within their artifact."""
    return f"labels-{shard_index:05d}.parquet"


def write_label_part(artifact: Artifact, shard_index: int, table: pa.Table) -> None:
    """Store the labels of one shard; from then on `finished_parts` names it."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    artifact.store.write(artifact.key(label_key(shard_index)), buffer.getvalue())


def finished_parts(artifact: Artifact) -> set[int]:
    """The shards whose labels are there."""
    prefix = artifact.key("")
    names = (key.removeprefix(prefix) for key in artifact.store.list(prefix))
    return {int(match[1]) for name in names if (match := _PART_KEY.fullmatch(name))}


def allowed_failures(images: int, quarantine_limit: float) -> float:
    """How many of the images may be set aside: this share of them, and always a handful."""
    return max(quarantine_limit * images, float(min(5, max(1, images // 10))))


def summarise_labels(
    artifact: Artifact, dataset: Dataset, *, parts: Sequence[str], quarantine_limit: float = 0.01
) -> dict[str, Any]:
    """The manifest's summary of a label set whose parts are all there.

    Raises MuvaError when shards are missing and when more images than `quarantine_limit` (a share,
    and more than a handful) could not be looked at.
    """
    missing = sorted(set(range(len(dataset.shards))) - finished_parts(artifact))
    if missing:
        raise MuvaError(
            f"{artifact.uri}: {len(missing)} of {len(dataset.shards)} shards have no labels yet "
            f"(shard {missing[0]} is the first). Start `muva ground` again"
        )
    found: Counter[str] = Counter()
    failed: dict[str, str] = {}
    for index in range(len(dataset.shards)):
        for row in _read_part(artifact, index).to_pylist():
            found[row["part"]] += row["found"]
            if row["error"] is not None:
                failed[row["image_id"]] = row["error"]
    images = dataset.summary.images
    if len(failed) > allowed_failures(images, quarantine_limit):
        image_id, reason = next(iter(failed.items()))
        raise MuvaError(
            f"{artifact.uri}: {len(failed)} of {images} images could not be looked at, for example "
            f"{image_id}: {reason}"
        )
    return {
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "parts": list(parts),
        "shards": len(dataset.shards),
        "images": images,
        "found": {part: found[part] / images for part in parts},
        "failed": len(failed),
    }


@dataclass(frozen=True)
class LabelSet:
    """The labels of one data set."""

    artifact: Artifact
    dataset: str
    parts: tuple[str, ...]
    _row_of: Mapping[str, int]
    _boxes: np.ndarray
    _found: np.ndarray

    def boxes(
        self, image_ids: Sequence[str], *, parts: Sequence[str] | None = None
    ) -> tuple[Float[Tensor, "M R 4"], Bool[Tensor, "M R"]]:
        """Boxes (x0, y0, x1, y1 as fractions; zeros where not found) and whether they were found.

        In the order of the images and of `parts` (all by default). Raises MuvaError for images or
        parts without labels.
        """
        wanted = self.parts if parts is None else tuple(parts)
        unknown = [part for part in wanted if part not in self.parts]
        if unknown:
            raise MuvaError(
                f"{self.artifact.uri}: has labels of {', '.join(self.parts)}, not of "
                f"{', '.join(unknown)}. Ground the data set with these parts too"
            )
        missing = [image_id for image_id in image_ids if image_id not in self._row_of]
        if missing:
            raise MuvaError(
                f"{self.artifact.uri}: {len(missing)} of {len(image_ids)} images have no labels, "
                f"for example {missing[0]}. Are these the labels of another data set?"
            )
        rows = np.array([self._row_of[image_id] for image_id in image_ids], np.int64)
        columns = np.array([self.parts.index(part) for part in wanted], np.int64)
        chosen = np.ix_(rows, columns)
        return torch.from_numpy(self._boxes[chosen]), torch.from_numpy(self._found[chosen])


def open_labels(artifact: Artifact, *, dataset: Dataset) -> LabelSet:
    """The labels of a complete artifact; MuvaError if they are another data set's."""
    manifest = artifact.manifest(format_version=LABEL_FORMAT)
    if manifest is None:
        raise MuvaError(f"{artifact.uri} is unfinished. Start `muva ground` again")
    summary = manifest["summary"]
    if summary["dataset_fingerprint"] != dataset.fingerprint:
        raise MuvaError(
            f"{artifact.uri} holds labels of {summary['dataset']} with the content "
            f"{summary['dataset_fingerprint']}; expected those of {dataset.name} with "
            f"{dataset.fingerprint}. Run `muva ground {dataset.name}`"
        )
    parts = tuple(summary["parts"])
    tables = [_read_part(artifact, index) for index in range(summary["shards"])]
    rows = pa.concat_tables(tables).select(["image_id", "part", "found", "box"]).to_pylist()
    row_of = {image_id: i for i, image_id in enumerate(dict.fromkeys(r["image_id"] for r in rows))}
    column_of = {part: column for column, part in enumerate(parts)}
    boxes = np.zeros((len(row_of), len(parts), 4), np.float32)
    found = np.zeros((len(row_of), len(parts)), bool)
    filled = np.zeros(found.shape, bool)
    for row in rows:
        place = row_of[row["image_id"]], column_of[row["part"]]
        filled[place] = True
        if row["found"]:
            boxes[place], found[place] = row["box"], True
    if not filled.all():
        image_id = list(row_of)[int(np.argwhere(~filled)[0][0])]
        raise MuvaError(
            f"{artifact.uri}: {int((~filled).sum())} labels are missing, for example of {image_id}"
            ". Delete the artifact and ground the data set again"
        )
    return LabelSet(artifact, summary["dataset"], parts, row_of, boxes, found)


def _read_part(artifact: Artifact, index: int) -> pa.Table:
    try:
        return pq.read_table(artifact.store.path(artifact.key(label_key(index))))
    except (pa.ArrowException, OSError) as error:
        raise MuvaError(
            f"{artifact.uri}: {label_key(index)} is damaged ({error}). Delete the artifact and "
            "ground the data set again"
        ) from error
