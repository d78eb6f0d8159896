"""Parquet shards of a data set: checking and writing records, and reading them back row by row.

Rows are sorted by split, identity and image id, so the same images always give the same bytes. A
shard stores the encoded images unchanged. Images that cannot be decoded are quarantined: their
names are recorded with the reason. Any other error in the data stops the import before anything is
written.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muva.config import PARTS
from muva.data import formats
from muva.data.artifacts import MANIFEST, Artifact
from muva.data.images import UnreadableImageError, decode_rgb
from muva.data.records import JUNK_PID, SPLITS, Box, Record, Split
from muva.errors import MuvaError

SHARD_BYTES, SHARD_IMAGES = 128 * 2**20, 1024
"""A shard ends at whichever limit is reached first. Crops are small, and processing a shard pays
off only with many images."""
QUARANTINE_LIMIT = 0.01
QUARANTINE = "quarantine.json"

_LARGEST_PID, _LARGEST_CAMID = 2**63 - 1, 2**31 - 1
_ROW_GROUP_ROWS = 64  # a whole row group is read even for a single image
_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("pid", pa.int64(), nullable=False),
        pa.field("camid", pa.int32()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("has_boxes", pa.bool_(), nullable=False),
        # Not fixed-size lists: Parquet reads their nulls back as lists of size 0.
        *(pa.field(f"box_{part}", pa.list_(pa.float32())) for part in PARTS),
        pa.field("caption", pa.string()),
        pa.field("image", pa.binary(), nullable=False),
    ]
)
ROW_COLUMNS = tuple(name for name in _SCHEMA.names if name != "image")
"""All columns except the encoded image."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of a data set."""

    key: str
    """Relative to the artifact."""
    rows: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What a data set contains; `asdict` gives the summary in its manifest."""

    domain: str
    fingerprint: str
    """Hash of the content of all rows, independent of where they came from."""
    images: int
    quarantined: int
    """Images, and the folders and links beside them, that cannot be read."""
    splits: dict[str, dict[str, int]]
    """Split -> number of images, identities (junk excluded) and cameras (0 if unknown)."""
    cameras_known: bool
    """Of all images. An evaluation ignores cameras unless all of its images have one."""
    has_boxes: bool
    shards: tuple[Shard, ...]
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> number of files that the data set was found beside and that were not read."""


def write_shards(
    records: Iterable[Record],
    *,
    artifact: Artifact,
    shard_bytes: int = SHARD_BYTES,
    shard_images: int = SHARD_IMAGES,
    quarantine_limit: float = QUARANTINE_LIMIT,
    unreadable: Sequence[dict[str, str]] = (),
    skipped: Mapping[str, int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSummary:
    """Check and store all records, and return the summary; the caller commits the artifact.

    `unreadable` are folders and links without records that cannot be opened, with `image_id` and
    `reason`; `skipped` are the numbers of other files by reason. Raises MuvaError if records
    contradict each other, or if too much is unreadable: more than the share `quarantine_limit` of
    the images, and more than one in ten (at least one, at most five).
    """
    ordered = sorted(records, key=lambda r: (SPLITS.index(r.split), r.pid, r.image_id))
    _check(ordered, name=artifact.name)
    allowed = max(quarantine_limit * len(ordered), min(5, max(1, len(ordered) // 10)))
    writer = _ShardWriter(artifact, shard_bytes, shard_images)
    quarantine = list(unreadable)
    if len(quarantine) > allowed:
        raise MuvaError(
            f"{artifact.name}: {len(quarantine)} folders and links cannot be opened (beside "
            f"{len(ordered)} images, at most {int(allowed)} may be quarantined): "
            f"{_examples(': '.join(entry.values()) for entry in quarantine)}. Check their "
            "permissions, and where the links lead"
        )
    for done, record in enumerate(ordered, start=1):
        try:
            writer.add(_row(record))
        except UnreadableImageError as error:
            quarantine.append({"image_id": record.image_id, "reason": str(error)})
            if len(quarantine) > allowed:
                raise MuvaError(
                    f"{artifact.name}: {len(quarantine)} of the first {done} images cannot be "
                    f"read (of {len(ordered)}, at most {int(allowed)} may be quarantined): "
                    f"{_examples(': '.join(entry.values()) for entry in quarantine)}. Was the "
                    "copy interrupted?"
                ) from error
        if progress is not None:
            progress(done, len(ordered))
    writer.finish()
    artifact.store.write(artifact.key(QUARANTINE), json.dumps(quarantine, indent=1).encode())
    _check_splits(writer.counts, name=artifact.name, why=f"{len(quarantine)} images are unreadable")
    return DatasetSummary(
        domain=ordered[0].domain,
        fingerprint=writer.fingerprint.hexdigest()[:16],
        images=writer.counts.total(),
        quarantined=len(quarantine),
        splits=_split_counts(ordered, {q["image_id"] for q in quarantine}),
        cameras_known=all(record.camid is not None for record in ordered),
        has_boxes=any(record.boxes is not None for record in ordered),
        shards=tuple(writer.shards),
        skipped=dict(skipped or {}),
    )


@dataclass(frozen=True)
class Dataset:
    """A stored data set. Rows are numbered consecutively across all shards."""

    artifact: Artifact
    summary: DatasetSummary
    visible: tuple[Split, ...] = SPLITS
    """The splits whose rows and images can be read; the others are hidden."""

    @property
    def name(self) -> str:
        """Name of the domain; image ids and pids are unique within it."""
        return self.summary.domain

    @property
    def fingerprint(self) -> str:
        """Hash of all rows."""
        return self.summary.fingerprint

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards with their row counts; no file is opened."""
        return self.summary.shards

    def rows(
        self, columns: Sequence[str] = ROW_COLUMNS, *, splits: Sequence[str] | None = None
    ) -> pa.Table:
        """The rows of these splits (default: all visible ones), with these columns and `row`."""
        tables = [
            self.read_shard(index, columns, splits=splits) for index in range(len(self.shards))
        ]
        return pa.concat_tables(tables).combine_chunks()

    def read_shard(
        self,
        index: int,
        columns: Sequence[str] = _SCHEMA.names,
        *,
        splits: Sequence[str] | None = None,
    ) -> pa.Table:
        """The rows of one shard, by default with encoded images; the last column is `row`."""
        needed = dict.fromkeys([*columns, "split"])
        with self._readable_errors(index):
            table = pq.read_table(self._file(index), columns=list(needed))
        first = int(self._first_rows[index])
        table = table.append_column("row", pa.array(np.arange(first, first + len(table))))
        splits_to_read = (
            self.visible if splits is None else [s for s in splits if s in self.visible]
        )
        if set(splits_to_read) != set(SPLITS):
            table = table.filter(pa.array(np.isin(table["split"].to_numpy(), splits_to_read)))
        return table.select([*columns, "row"])

    def read_images(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """The encoded images of these rows, in the same order."""
        row_numbers = np.asarray(rows, np.int64)
        if row_numbers.size and (
            row_numbers.min() < 0 or row_numbers.max() >= self._first_rows[-1]
        ):
            raise IndexError(f"{self.name} has rows 0 to {self._first_rows[-1] - 1}")
        if self.visible != SPLITS and not np.isin(row_numbers, self._visible_rows).all():
            raise MuvaError(
                f"{self.name}: expected rows of the splits {', '.join(self.visible)}, found a row "
                "of another split, which must not be read here"
            )
        images: list[bytes] = [b""] * len(row_numbers)
        shard_indices, rows_in_shard = self.locate_rows(row_numbers)
        for shard in np.unique(shard_indices):
            positions = np.flatnonzero(shard_indices == shard)
            shard_rows = rows_in_shard[positions]
            with (
                self._readable_errors(int(shard)),
                pq.ParquetFile(self._file(int(shard)), memory_map=True) as file,
            ):
                for group in np.unique(shard_rows // _ROW_GROUP_ROWS):
                    column = file.read_row_group(int(group), columns=["image"])["image"]
                    for position in np.flatnonzero(shard_rows // _ROW_GROUP_ROWS == group):
                        offset = int(shard_rows[position] - group * _ROW_GROUP_ROWS)
                        images[positions[position]] = column[offset].as_py()
        return images

    def locate_rows(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row the index of its shard, and its position within that shard."""
        shards = np.searchsorted(self._first_rows, rows, side="right") - 1
        return shards, np.asarray(rows) - self._first_rows[shards]

    def quarantine(self) -> list[dict[str, str]]:
        """The quarantined images: `image_id` and `reason`."""
        try:
            return json.loads(self.artifact.store.read(self.artifact.key(QUARANTINE)))
        except ValueError as error:
            raise self._damage(QUARANTINE, error) from error

    @cached_property
    def _first_rows(self) -> np.ndarray:
        """Row number of the first row of each shard, followed by the total number of rows."""
        return np.cumsum([0, *(shard.rows for shard in self.shards)])

    @cached_property
    def _visible_rows(self) -> np.ndarray:
        return self.rows([])["row"].to_numpy()

    @contextmanager
    def _readable_errors(self, index: int) -> Iterator[None]:
        """Turn errors from a damaged shard into a MuvaError that names the remedy."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise self._damage(self.shards[index].key, error) from error

    def _damage(self, key: str, error: Exception) -> MuvaError:
        return MuvaError(
            f"{self.artifact.uri}: {key} is damaged ({error}). Delete the folder "
            f"{self.artifact.address} of the store and import the data set again"
        )

    @cached_property
    def _files(self) -> dict[int, Path]:
        """Local paths of shards opened before, so that a bucket is queried once per shard."""
        return {}

    def _file(self, index: int) -> Path:
        local_path = self._files.get(index)
        if local_path is None or not local_path.is_file():
            local_path = self.artifact.store.path(self.artifact.key(self.shards[index].key))
            self._files[index] = local_path
        return local_path


class StoredImages(Sequence[bytes]):
    """The encoded images of these rows of a data set, each read when it is accessed.

    So that a consumer of one batch after another holds the files of one batch, not those of all.
    """

    def __init__(self, dataset: Dataset, rows: Sequence[int] | np.ndarray):
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return self._dataset.read_images(self._rows[index])
        return self._dataset.read_images([self._rows[index]])[0]


def open_dataset(artifact: Artifact) -> Dataset:
    """The data set of a complete artifact; MuvaError when unfinished or of another format."""
    manifest = artifact.manifest(format_version=formats.SHARDS)
    if manifest is None:
        raise MuvaError(
            f"{artifact.uri} is unfinished: its import was interrupted. Run `muva data import` "
            "again"
        )
    try:
        summary = dict(manifest["summary"])
        shards = tuple(Shard(**shard) for shard in summary.pop("shards"))
        return Dataset(artifact, DatasetSummary(**summary, shards=shards))
    except (KeyError, TypeError, ValueError) as error:
        raise MuvaError(
            f"{artifact.uri}: the summary in {MANIFEST} is damaged ({error}). Delete the "
            f"folder {artifact.address} of the store and import the data set again"
        ) from error


def _check(records: Sequence[Record], *, name: str) -> None:
    """Raise MuvaError if records contradict each other or the rules of `Record`."""
    domains = {record.domain for record in records}
    if len(domains) > 1:
        raise MuvaError(
            f"{name}: expected records of one domain, found {_examples(sorted(domains))}"
        )
    _check_splits(Counter(record.split for record in records), name=name, why="")
    repeated = [i for i, n in Counter(record.image_id for record in records).items() if n > 1]
    _reject(repeated, f"{name}: image ids must be unique; repeated")
    _reject(
        [r.image_id for r in records if r.pid < JUNK_PID or (r.pid < 0 and r.split != "gallery")],
        f"{name}: pids must not be negative, except for -1 (junk) in the gallery; found",
    )
    _reject(
        [
            f"{r.image_id} (camera {r.camid})"
            for r in records
            if r.camid is not None and r.camid < 0
        ],
        f"{name}: camera ids must not be negative (leave out unknown ones); found",
    )
    _reject(
        [
            f"{r.image_id} (person {r.pid}, camera {r.camid})"
            for r in records
            if r.pid > _LARGEST_PID or (r.camid or 0) > _LARGEST_CAMID
        ],
        f"{name}: pids must be below 2^63 and camera ids below 2^31; found",
    )
    _reject(
        [
            f"{r.image_id} {box}"
            for r in records
            for box in (r.boxes or {}).values()
            if not _fits(box)
        ],
        f"{name}: boxes must be fractions, 0 <= x0 < x1 <= 1 and the same for y; found",
    )
    train = {r.pid: r.image_id for r in records if r.split == "train"}
    test = {r.pid: r.image_id for r in records if r.split != "train"}
    _reject(
        [f"{pid} ({train[pid]} and {test[pid]})" for pid in sorted(train.keys() & test.keys())],
        f"{name}: identities must not be in both train and query or gallery; found pids",
    )


def _check_splits(counts: Counter[str], *, name: str, why: str) -> None:
    because = f" ({why})" if why else ""
    if not counts.total():
        raise MuvaError(f"{name}: expected images, found none{because}")
    for split, other in (("query", "gallery"), ("gallery", "query")):
        if counts[split] and not counts[other]:
            raise MuvaError(
                f"{name}: the split {other} is empty while {split} has {counts[split]} "
                f"images{because}; retrieval needs both"
            )


def _reject(offenders: Sequence[str], message: str) -> None:
    if offenders:
        raise MuvaError(f"{message} {_examples(offenders)}")


def _examples(items: Iterable[str], limit: int = 3) -> str:
    """The first few items, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _row(record: Record) -> dict[str, Any]:
    """All columns of a record; UnreadableImageError if the image cannot be decoded completely."""
    try:
        encoded = record.read()
    except OSError as error:
        raise UnreadableImageError(f"cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a path that is invalid on this platform
        raise UnreadableImageError(f"cannot be opened: {error}") from error
    image = decode_rgb(encoded)
    boxes = record.boxes or {}
    return {
        "image_id": record.image_id,
        "split": record.split,
        "pid": record.pid,
        "camid": record.camid,
        "width": image.width,
        "height": image.height,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "has_boxes": record.boxes is not None,
        **{f"box_{part}": _float32(boxes.get(part)) for part in PARTS},
        "caption": record.caption,
        "image": encoded,
    }


def _fits(box: Box | None) -> bool:
    """Whether a box is non-empty and lies within its image, after rounding to float32."""
    x0, y0, x1, y1 = _float32(box) or (0, 0, 1, 1)
    return 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def _float32(box: Sequence[float] | None) -> list[float] | None:
    return None if box is None else np.asarray(box, np.float32).tolist()


class _ShardWriter:
    """Groups rows into shards of about `shard_bytes` or `shard_images`, and hashes all of them."""

    def __init__(self, artifact: Artifact, shard_bytes: int, shard_images: int):
        self.shards: list[Shard] = []
        self.counts: Counter[str] = Counter()
        self.fingerprint = hashlib.sha256()
        self._artifact = artifact
        self._shard_bytes, self._shard_images = shard_bytes, shard_images
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write a shard if it is full."""
        self._rows.append(row)
        self._bytes += len(row["image"])
        self.counts[row["split"]] += 1
        without_image = {name: value for name, value in row.items() if name != "image"}
        self.fingerprint.update(json.dumps(without_image, sort_keys=True).encode() + b"\n")
        if self._bytes >= self._shard_bytes or len(self._rows) == self._shard_images:
            self.finish()

    def finish(self) -> None:
        """Write the remaining rows."""
        if not self._rows:
            return
        key = f"shard-{len(self.shards):05d}.parquet"
        encoded = _parquet(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._artifact.store.write(self._artifact.key(key), encoded)
        self.shards.append(Shard(key=key, rows=len(self._rows), size_bytes=len(encoded)))
        self._rows, self._bytes = [], 0


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {
        "compression": {name: "none" if name == "image" else "zstd" for name in _SCHEMA.names},
        "use_dictionary": ["split"],
        "write_statistics": False,
    }
    pq.write_table(table, buffer, row_group_size=_ROW_GROUP_ROWS, **options)
    return buffer.getvalue()


def _split_counts(records: Iterable[Record], quarantined: set[str]) -> dict[str, dict[str, int]]:
    counts = {}
    kept = [record for record in records if record.image_id not in quarantined]
    for split in SPLITS:
        of_split = [record for record in kept if record.split == split]
        if of_split:
            counts[split] = {
                "images": len(of_split),
                "identities": len({r.pid for r in of_split} - {JUNK_PID}),
                "cameras": len({r.camid for r in of_split} - {None}),
            }
    return counts
