"""Pseudo-labels on disk: one Parquet file per shard, with one row per image and body part.

A row holds a box, or a mask of patches if the labels were imported as masks of a certain grid. Only
the requested columns are read.
"""

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

from muva.data import formats
from muva.data.artifacts import Artifact
from muva.data.shards import Dataset
from muva.errors import MuvaError
from muva.grounding.part_masks import part_masks, patch_centres

_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("found", pa.bool_(), nullable=False),
        pa.field("box", pa.list_(pa.float32())),
        # One bit per patch, row-major over the `grid` in the summary; null if there is a box.
        pa.field("mask", pa.binary()),
        pa.field("score", pa.float32()),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("expert", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
)
_PART_KEY = re.compile(r"labels-(\d{5,})\.parquet")


def label_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of labels as a table with the right schema."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=_SCHEMA)


def label_key(shard_index: int) -> str:
    """Key of a shard's labels, relative to their artifact."""
    return f"labels-{shard_index:05d}.parquet"


def write_shard_labels(artifact: Artifact, shard_index: int, table: pa.Table) -> bool:
    """Store the labels of one shard; from then on, `labelled_shards` includes it.

    Returns False, and changes nothing, if another writer was faster.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return artifact.store.create(artifact.key(label_key(shard_index)), buffer.getvalue())


def read_shard_labels(
    artifact: Artifact, shard_index: int, columns: Sequence[str] = _SCHEMA.names
) -> pa.Table:
    """The labels of one shard. Raises MuvaError if the file is damaged."""
    key = label_key(shard_index)
    try:
        path = artifact.store.path(artifact.key(key))
        file = pq.ParquetFile(path, read_dictionary=["image_id", "part"])  # values repeat often
        return file.read([name for name in columns if name in file.schema_arrow.names])
    except (pa.ArrowException, OSError) as error:
        raise MuvaError(
            f"{artifact.uri}: {key} is damaged ({error}). Delete the artifact and ground the data "
            "set again"
        ) from error


def labelled_shards(artifact: Artifact) -> set[int]:
    """Indices of the shards whose labels exist."""
    prefix = artifact.key("")
    names = (key.removeprefix(prefix) for key in artifact.store.list(prefix))
    return {int(match[1]) for name in names if (match := _PART_KEY.fullmatch(name))}


def max_quarantined(images: int, quarantine_limit: float) -> float:
    """How many images may be quarantined: this share, or one in ten (from one to five)."""
    return max(quarantine_limit * images, float(min(5, max(1, images // 10))))


def summarise_labels(
    artifact: Artifact,
    dataset: Dataset,
    *,
    parts: Sequence[str],
    quarantine_limit: float = 0.01,
    grid: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The summary for the manifest of a label set.

    `grid` is the number of rows and columns of patches, for label sets with masks. Raises MuvaError
    if shards are missing, or if more images failed than `max_quarantined` allows.
    """
    missing = sorted(set(range(len(dataset.shards))) - labelled_shards(artifact))
    if missing:
        raise MuvaError(
            f"{artifact.uri}: {len(missing)} of {len(dataset.shards)} shards have no labels yet, "
            f"the first is shard {missing[0]}. Run `muva ground` again"
        )
    found: Counter[str] = Counter()
    failed: dict[str, str] = {}
    for index in range(len(dataset.shards)):
        table = read_shard_labels(artifact, index, ("image_id", "part", "found", "error"))
        counts = table["part"].filter(table["found"]).value_counts()
        found.update(
            dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
        )
        bad = table.filter(table["error"].is_valid())
        failed |= dict(zip(bad["image_id"].to_pylist(), bad["error"].to_pylist(), strict=True))
    images = dataset.summary.images
    if len(failed) > max_quarantined(images, quarantine_limit):
        image_id, reason = next(iter(failed.items()))
        raise MuvaError(
            f"{artifact.uri}: {len(failed)} of {images} images were quarantined, for example "
            f"{image_id}: {reason}. Delete these labels with `muva store gc` to try again, or "
            "accept more such images with --set grounding.quarantine_limit=SHARE"
        )
    summary: dict[str, Any] = {
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "parts": list(parts),
        "shards": len(dataset.shards),
        "images": images,
        "found": {part: found[part] / images for part in parts},
        "failed": len(failed),
    }
    return summary | ({"grid": list(grid)} if grid else {})


@dataclass(frozen=True)
class LabelSet:
    """The pseudo-labels of one data set."""

    artifact: Artifact
    dataset: str
    parts: tuple[str, ...]
    image_ids: tuple[str, ...]
    """In the order of the data set."""
    grid: tuple[int, int] | None
    """Rows and columns of patches if the set holds masks, None if it holds boxes."""
    shards: tuple[int, ...]
    """Indices of the shards that were read."""
    _row_of: Mapping[str, int]
    _boxes: np.ndarray
    _found: np.ndarray
    _masks: np.ndarray | None

    def boxes(
        self, image_ids: Sequence[str], *, parts: Sequence[str] | None = None
    ) -> tuple[Float[Tensor, "M R 4"], Bool[Tensor, "M R"]]:
        """Boxes (x0, y0, x1, y1 as fractions; zeros if not found), and whether each was found.

        They are in the order of the images and of `parts` (default: all). For masks, the box
        encloses the patches. Raises MuvaError for images or parts without labels.
        """
        indices = self._indices(image_ids, parts)
        return torch.from_numpy(self._boxes[indices]), torch.from_numpy(self._found[indices])

    def masks(
        self,
        image_ids: Sequence[str],
        *,
        row_centres: Float[Tensor, " rows"],
        column_centres: Float[Tensor, " columns"],
        parts: Sequence[str] | None = None,
    ) -> Bool[Tensor, "M R L"]:
        """Masks of the parts with L = rows x columns patches, row-major; boxes as in `part_masks`.

        Masks that were imported are returned unchanged. Raises MuvaError if they have another grid,
        and for images or parts without labels.
        """
        indices = self._indices(image_ids, parts)
        if self._masks is None:
            return part_masks(
                torch.from_numpy(self._boxes[indices]),
                torch.from_numpy(self._found[indices]),
                row_centres=row_centres,
                column_centres=column_centres,
            )
        expected_grid = len(row_centres), len(column_centres)
        if expected_grid != self.grid:
            rows, columns = self.grid or (0, 0)
            raise MuvaError(
                f"{self.artifact.uri}: expected masks of {expected_grid[0]} x {expected_grid[1]} "
                f"patches for this image size and stride, found {rows} x {columns}. Import masks "
                "with that grid, or ground the data set: boxes fit any grid"
            )
        return torch.from_numpy(self._masks[indices])

    def boxes_of_masks(
        self,
        image_ids: Sequence[str],
        *,
        row_centres: Float[Tensor, " rows"],
        column_centres: Float[Tensor, " columns"],
        parts: Sequence[str] | None = None,
    ) -> tuple[Float[Tensor, "M R 4"], Bool[Tensor, "M R"]]:
        """The boxes from which `part_masks` makes what `masks` returns, and whether each was found.

        Raises MuvaError if the masks were imported and not all of them are rectangles.
        """
        boxes, found = self.boxes(image_ids, parts=parts)
        if self._masks is not None:
            centres = {"row_centres": row_centres, "column_centres": column_centres}
            masks = self.masks(image_ids, **centres, parts=parts)
            differs = (part_masks(boxes, found, **centres) != masks).flatten(1).any(dim=1)
            if differs.any():
                raise MuvaError(
                    f"{self.artifact.uri}: the imported masks of {int(differs.sum())} of "
                    f"{len(image_ids)} images are not rectangles, for example of "
                    f"{image_ids[int(differs.nonzero()[0])]}, so that they cannot be moved by "
                    "pixels as boxes can. Set augmentation.pad=0, or ground the data set"
                )
        return boxes, found

    def masks_on_grid(
        self,
        grid: tuple[int, int],
        image_ids: Sequence[str],
        *,
        parts: Sequence[str] | None = None,
    ) -> Bool[Tensor, "M R L"]:
        """The same for a grid (rows, columns) of patches that cover the image completely."""
        rows, columns = (patch_centres(count, patch=1, stride=1) for count in grid)
        return self.masks(image_ids, row_centres=rows, column_centres=columns, parts=parts)

    def row_indices(self, image_ids: Sequence[str]) -> list[int]:
        """Positions of these images in `image_ids`. Raises MuvaError for images without labels."""
        missing = [image_id for image_id in image_ids if image_id not in self._row_of]
        if missing:
            raise MuvaError(
                f"{self.artifact.uri}: {len(missing)} of {len(image_ids)} images have no labels, "
                f"for example {missing[0]}. Are these the labels of another data set?"
            )
        return [self._row_of[image_id] for image_id in image_ids]

    def details(self) -> pa.Table:
        """All rows with score, answer and error, read from disk."""
        columns = ("image_id", "part", "score", "answer", "error")
        return pa.concat_tables(
            read_shard_labels(self.artifact, index, columns) for index in self.shards
        )

    def _indices(
        self, image_ids: Sequence[str], parts: Sequence[str] | None
    ) -> tuple[np.ndarray, ...]:
        names = self.parts if parts is None else tuple(parts)
        unknown = [part for part in names if part not in self.parts]
        if unknown:
            raise MuvaError(
                f"{self.artifact.uri}: expected labels of {', '.join(unknown)}, found only "
                f"{', '.join(self.parts)}. Ground the data set with these parts too"
            )
        rows = np.array(self.row_indices(image_ids), np.int64)
        columns = np.array([self.parts.index(part) for part in names], np.int64)
        return np.ix_(rows, columns)


def labelled_parts(artifact: Artifact) -> tuple[str, ...]:
    """The parts in a complete label set; no labels are read."""
    return tuple(_summary(artifact)["parts"])


def _summary(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest(format_version=formats.LABELS)
    if manifest is None:
        raise MuvaError(f"{artifact.uri} is unfinished. Run `muva ground` again")
    return manifest["summary"]


def open_labels(
    artifact: Artifact, *, dataset: Dataset, shards: Sequence[int] | None = None
) -> LabelSet:
    """The labels of a complete artifact, or only those of some `shards` of the data set.

    Raises MuvaError if they belong to another data set, or if labels are missing or damaged.
    """
    summary = _summary(artifact)
    if summary["dataset_fingerprint"] != dataset.fingerprint:
        raise MuvaError(
            f"{artifact.uri}: expected labels of {dataset.name} with the content "
            f"{dataset.fingerprint}, found those of {summary['dataset']} with "
            f"{summary['dataset_fingerprint']}. Run `muva ground {dataset.name}`"
        )
    parts = tuple(summary["parts"])
    grid = (int(summary["grid"][0]), int(summary["grid"][1])) if "grid" in summary else None
    columns = ("image_id", "part", "found", "mask" if grid else "box")
    shard_indices = tuple(range(summary["shards"]) if shards is None else shards)
    images = summary["images"]
    if shards is not None:
        images = sum(dataset.shards[index].rows for index in shard_indices)
    table = pa.concat_tables(read_shard_labels(artifact, index, columns) for index in shard_indices)
    table = table.unify_dictionaries()
    rows = table["image_id"].combine_chunks()
    image_ids = tuple(rows.dictionary.to_pylist())
    position = rows.indices.to_numpy(), _columns_of(table["part"], parts, artifact)
    shape = len(image_ids), len(parts)
    filled = np.zeros(shape, np.int64)
    np.add.at(filled, position, 1)
    remedy = "Delete the artifact and ground the data set again"
    if (filled != 1).any() or len(image_ids) != images:
        image_id = image_ids[int(np.argwhere(filled != 1)[0][0])] if (filled != 1).any() else ""
        example = f", for example of {image_id}" if image_id else ""
        raise MuvaError(
            f"{artifact.uri}: {int((filled == 0).sum())} labels are missing and "
            f"{int((filled > 1).sum())} are duplicated{example}; {len(image_ids)} of "
            f"{images} images have labels. {remedy}"
        )
    was_found = table["found"].to_numpy()
    found = np.zeros(shape, bool)
    found[position] = was_found
    boxes = np.zeros((*shape, 4), np.float32)
    found_at = position[0][was_found], position[1][was_found]
    masks = None
    if grid:
        masks = np.zeros((*shape, grid[0] * grid[1]), bool)
        masks[found_at] = unpacked_masks(table["mask"].filter(table["found"]).to_pylist(), grid)
        boxes[found_at] = boxes_around(masks[found_at], grid)
    else:
        lists = table["box"].filter(table["found"]).combine_chunks()
        corners = lists.flatten().to_numpy()
        if lists.null_count or (np.diff(lists.offsets.to_numpy()) != 4).any():
            raise MuvaError(f"{artifact.uri}: a part was found, but has no box. {remedy}")
        boxes[found_at] = corners.reshape(-1, 4)
        x0, y0, x1, y1 = boxes[found_at].T
        if not ((x0 >= 0) & (x0 < x1) & (x1 <= 1) & (y0 >= 0) & (y0 < y1) & (y1 <= 1)).all():
            raise MuvaError(f"{artifact.uri}: contains boxes that are not fractions. {remedy}")
    return LabelSet(
        artifact=artifact,
        dataset=summary["dataset"],
        parts=parts,
        image_ids=image_ids,
        grid=grid,
        shards=shard_indices,
        _row_of=dict(zip(image_ids, range(len(image_ids)), strict=True)),
        _boxes=boxes,
        _found=found,
        _masks=masks,
    )


def packed_mask(mask: np.ndarray) -> bytes:
    """A mask of patches (L,) as bits, for the column `mask`."""
    return np.packbits(mask.astype(bool)).tobytes()


def unpacked_masks(packed: Sequence[bytes], grid: tuple[int, int]) -> np.ndarray:
    """The masks (M, L) of packed bits."""
    patches = grid[0] * grid[1]
    raw = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -(-patches // 8))
    return np.unpackbits(raw, axis=1, count=patches).astype(bool)


def boxes_around(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Boxes (M, 4) that enclose the masks (M, L), as fractions; no mask may be empty."""
    rows, columns = grid
    on_grid = masks.reshape(-1, rows, columns)
    down, across = (np.atleast_2d(on_grid.any(axis=axis)) for axis in (2, 1))
    edges = [
        across.argmax(axis=1) / columns,
        down.argmax(axis=1) / rows,
        1 - across[:, ::-1].argmax(axis=1) / columns,
        1 - down[:, ::-1].argmax(axis=1) / rows,
    ]
    return np.stack(edges, axis=1).astype(np.float32)


def _columns_of(part: pa.ChunkedArray, parts: Sequence[str], artifact: Artifact) -> np.ndarray:
    named = part.combine_chunks()
    names = named.dictionary.to_pylist()
    unknown = sorted(set(names) - set(parts))
    if unknown:
        raise MuvaError(
            f"{artifact.uri}: expected rows of {', '.join(parts)}, as in its manifest, "
            f"found {unknown[0]}. Delete the artifact and ground the data set again"
        )
    return np.array([parts.index(name) for name in names], np.int64)[named.indices.to_numpy()]
