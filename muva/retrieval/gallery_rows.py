"""What a growing gallery knows of an image beside its feature, and how a search selects images."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from muva.errors import MuvaError

Value = str | int | float | bool | None

KNOWN = pa.schema(
    [
        ("image_id", pa.string()),
        ("pid", pa.int64()),
        ("camid", pa.int64()),
        ("time", pa.timestamp("us", "UTC")),
        ("place", pa.string()),
        ("folder", pa.string()),
        ("dataset", pa.string()),
    ]
)
"""The columns that every gallery has beside `FEATURE`."""
FEATURE = "feature"
MAX_ID_LENGTH = 512
_COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")
_TYPES: Mapping[type, pa.DataType] = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
}


@dataclass(frozen=True, kw_only=True)
class GalleryRow:
    """An image of a gallery."""

    image_id: str
    """Unique in its gallery."""
    pid: int | None = None
    camid: int | None = None
    time: datetime | None = None
    """When the image was taken, with a time zone."""
    place: str | None = None
    folder: str | None = None
    """The folder of the image, from which `image_id` is a relative path; None if the image is not
    on this machine's disks."""
    dataset: str | None = None
    """Address of the data set, if the image is from a data set."""
    columns: Mapping[str, Value] = field(default_factory=dict)
    """Anything else that is known, by the name of a column."""

    def check(self) -> None:
        """Check that a gallery can keep this; MuvaError if not."""
        check_image_id(self.image_id)
        if self.time is not None and self.time.tzinfo is None:
            raise MuvaError(
                f"image {self.image_id}: expected a time with a time zone, found {self.time}"
            )
        for name in self.columns:
            check_column_name(name)


@dataclass(frozen=True, kw_only=True)
class GalleryFilter:
    """Which images of a gallery a search looks at; by default all.

    An image whose camera, place or time is unknown is left out where these are asked for.
    """

    camids: tuple[int, ...] = ()
    places: tuple[str, ...] = ()
    after: datetime | None = None
    """The earliest time."""
    before: datetime | None = None
    """The first time that is too late."""

    def expression(self) -> pc.Expression | None:
        """The condition on a gallery's columns; None if there is none."""
        found = [
            _one_of("camid", self.camids),
            _one_of("place", self.places),
            None if self.after is None else pc.field("time") >= _instant(self.after),
            None if self.before is None else pc.field("time") < _instant(self.before),
        ]
        conditions = [one for one in found if one is not None]
        return functools.reduce(operator.and_, conditions) if conditions else None


@dataclass(frozen=True, kw_only=True)
class Match:
    """An image that a search found."""

    row: GalleryRow
    cosine: float


@dataclass(frozen=True, kw_only=True)
class GallerySummary:
    """What is in a gallery."""

    images: int
    people: int
    """Different pids; images of unknown people are not counted."""
    camids: tuple[int, ...]
    places: tuple[str, ...]
    first: datetime | None
    last: datetime | None


def of_people(pids: Sequence[int], image_ids: Sequence[str]) -> pc.Expression:
    """The condition on a gallery's columns for images of some people, and for images with ids."""
    conditions = [_one_of("pid", pids), _one_of("image_id", image_ids)]
    return functools.reduce(operator.or_, (one for one in conditions if one is not None))


def check_image_id(image_id: str) -> None:
    """Check that an id is a relative path with forward slashes, without detours.

    Raises:
        MuvaError: it is not.
    """
    parts = image_id.split("/")
    if (
        not 0 < len(image_id) <= MAX_ID_LENGTH
        or any(part in ("", ".", "..") for part in parts)
        or not image_id.isprintable()
    ):
        raise MuvaError(
            f"image id {image_id[:80]!r}: expected a relative path of at most {MAX_ID_LENGTH} "
            "printable characters, such as cam1/0007.jpg, without empty parts, . and .."
        )


def as_table(rows: Sequence[GalleryRow], schema: pa.Schema) -> pa.Table:
    """The rows as a table with these columns.

    Raises:
        MuvaError: a value does not fit its column.
    """
    columns = []
    for column in schema:
        known = column.name in KNOWN.names
        values = [
            getattr(row, column.name) if known else row.columns.get(column.name) for row in rows
        ]
        try:
            if known:
                columns.append(pa.array(values, column.type))
            else:
                columns.append(pa.array(values).cast(column.type))
        except (pa.ArrowException, OverflowError, TypeError) as error:
            raise MuvaError(
                f"column {column.name}: expected {column.type}, as in the images that the gallery "
                f"has, found another type: {error}"
            ) from error
    return pa.table(columns, schema=schema)


def as_rows(table: pa.Table) -> list[GalleryRow]:
    """The rows of a table that has the columns of a gallery."""
    known = [name for name in table.column_names if name in KNOWN.names]
    others = [name for name in table.column_names if name not in (*KNOWN.names, FEATURE)]
    others = [name for name in others if not name.startswith("_")]
    return [
        GalleryRow(
            **{name: row[name] for name in known},
            columns={name: row[name] for name in others if row[name] is not None},
        )
        for row in table.select([*known, *others]).to_pylist()
    ]


def new_columns(rows: Sequence[GalleryRow], schema: pa.Schema) -> list[pa.Field]:
    """The columns of the rows that the schema lacks."""
    found: dict[str, pa.DataType] = {}
    for row in rows:
        for name, value in row.columns.items():
            if value is not None and name not in schema.names:
                if type(value) not in _TYPES:
                    raise MuvaError(
                        f"column {name}: expected texts, numbers or truth values of Python, found "
                        f"{type(value).__name__}"
                    )
                found.setdefault(name, _TYPES[type(value)])
    lower = [name.lower() for name in (*schema.names, *found)]
    if twice := next((name for name in found if lower.count(name.lower()) > 1), None):
        raise MuvaError(
            f"column {twice}: the gallery has a column whose name differs in case alone"
        )
    return [pa.field(name, kind) for name, kind in found.items()]


def check_column_name(name: str) -> None:
    """Check that a gallery can have a further column of this name; MuvaError if not."""
    if not _COLUMN_NAME.fullmatch(name) or name.lower() in {FEATURE, *KNOWN.names}:
        raise MuvaError(
            f"column {name!r}: expected a name of letters, digits and _ that starts with a letter, "
            f"other than {FEATURE}, {', '.join(KNOWN.names)}"
        )


def utc_time(text: str) -> datetime:
    """A time from ISO 8601, in UTC where it has no offset.

    Raises:
        MuvaError: it is none.
    """
    try:
        time = datetime.fromisoformat(text.strip())
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise MuvaError(
            f"time {text!r}: expected ISO 8601, such as 2026-11-30T08:15 in UTC, or with an offset "
            "as in 2026-11-30T08:15+01:00"
        ) from error


def _one_of(column: str, values: Sequence[Value]) -> pc.Expression | None:
    return pc.field(column).isin(list(values)) if values else None


def _instant(time: datetime) -> pc.Expression:
    return pc.scalar(pa.scalar(time, pa.timestamp("us", "UTC")))
