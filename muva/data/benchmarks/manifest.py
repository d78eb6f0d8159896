"""A list of images as CSV or Parquet: one row per image, columns identified by name.

`path` (relative to the folder of the list) and `pid` are required. Optional columns are `camid`
(empty where the camera is unknown), `split` (train, query, gallery), `caption`, and exact boxes of
the body parts (`head_x0`, `head_y0`, `head_x1`, `head_y1`, `upper_body_x0`, ..., `legs_y1`; as
fractions of the image, empty if the part is out of sight). Other columns are ignored.
"""

from __future__ import annotations

import codecs
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.data.benchmarks.folder import WholeSplit, whole_split
from muva.data.benchmarks.listing import numbered_cameras, numbered_people
from muva.data.records import SPLITS, Box, Record, Split
from muva.errors import MuvaError, SettingsError

if TYPE_CHECKING:
    import pyarrow as pa

_CORNERS = ("x0", "y0", "x1", "y1")
_DELIMITERS = (",", "\t", ";", "|")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order mark -> encoding."""
_MISSING = frozenset({"nan", "NaN", "NAN", "NA", "<NA>", "N/A", "n/a", "null", "NULL", "None"})
"""What pandas, R and databases write for a missing value, where a cell is not left empty."""


def read_manifest(root: Path, *, domain: str, split: WholeSplit | None = None) -> Iterator[Record]:
    """Records of a list; `root` is the path of the file.

    Identities and cameras that are not integers are numbered in sorted order; integers may be
    written as floats. Columns may be separated by commas, semicolons, tabs or bars, and neither the
    case of their names nor spaces around them matter. Without a column `split`, the option `split`
    decides as in `read_folder`. Raises MuvaError if the list is damaged or incomplete.
    """
    table = listed_table(root)
    repeated = [name for name, count in Counter(table.column_names).items() if count > 1]
    if repeated:
        raise MuvaError(
            f"the list {root}: expected each column once, found {repeated[0]} repeatedly"
        )
    missing = [name for name in ("path", "pid") if name not in table.column_names]
    if missing:
        raise MuvaError(
            f"the list {root}: expected the columns path and pid, found "
            f"{', '.join(table.column_names) or 'none'}. The first line must be a header such as "
            "path,pid,camid"
        )
    paths = _texts(table, "path", root)
    pid_names = _texts(table, "pid", root, text=_label)
    pid_of = numbered_people(pid_names)
    pids = [pid_of[name] for name in pid_names]
    camids = _camids(table)
    if split is not None and "split" in table.column_names:
        raise SettingsError(
            f"the list {root} has a column split; expected no option split in addition, found "
            f"{split!r}"
        )
    boxes = _boxes(table, root)
    splits = _splits(table, root) or whole_split(split, pids, camids)
    captions = None
    if "caption" in table.column_names:
        captions = [_text(caption) or None for caption in table["caption"].to_pylist()]
    for index, path in enumerate(paths):
        yield Record(
            domain=domain,
            image_id=Path(path).as_posix(),
            split=splits[index],
            pid=pids[index],
            camid=camids[index],
            source=root.parent / path,
            boxes=None if boxes is None else boxes[index],
            caption=captions[index] if captions else None,
        )


def listed_table(file: Path) -> pa.Table:
    """The table in a CSV or Parquet file; what is in a CSV file is text.

    Raises:
        MuvaError: it is damaged, or something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.is_file():
        found = "a folder" if file.is_dir() else "nothing"
        raise MuvaError(f"the list {file}: expected a CSV or Parquet file, found {found}")
    if file.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise MuvaError(f"the list {file}: expected a name that ends in .csv, .tsv or .parquet")
    try:
        table = pq.read_table(file) if file.suffix.lower() == ".parquet" else _csv_table(file)
    except (pa.ArrowException, OSError) as error:
        raise MuvaError(f"the list {file} cannot be read: {error}") from error
    return table.rename_columns(
        [
            _column_name(name) if _column_name(name) not in table.column_names else name
            for name in table.column_names
        ]
    )


def _csv_table(file: Path) -> pa.Table:
    """The columns as text: 0002 and 2 are different names until `numbered` sees them all."""
    import pyarrow as pa
    import pyarrow.csv

    text = _decoded(file)
    header = next((line for line in io.StringIO(text) if line.strip()), "")
    layout = pyarrow.csv.ParseOptions(delimiter=_delimiter(header))
    encoded = pa.py_buffer(text.encode())
    names = pyarrow.csv.open_csv(pa.BufferReader(encoded), parse_options=layout).schema.names
    types = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    table = pyarrow.csv.read_csv(
        pa.BufferReader(encoded), parse_options=layout, convert_options=types
    )
    if all(name == name.strip() for name in names):
        return table
    columns = [  # the header is "path, pid", so the values are "a.jpg, 1"
        pa.array([value.strip() for value in column.to_pylist()], pa.string())
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _decoded(file: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 if it starts with a byte order mark."""
    encoded = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if encoded.startswith(mark)), "utf-8")
    try:
        text = encoded.decode(encoding)
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        raise MuvaError(
            f"the list {file}: expected text in UTF-8, found other bytes in line {line}. Save it "
            "as UTF-8, or convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
    if "\0" in text:
        raise MuvaError(
            f"the list {file}: expected text in UTF-8, found zero bytes, as in UTF-16 without a "
            "byte order mark. Save it as UTF-8, or convert it, for example with "
            "`iconv -f UTF-16LE -t UTF-8`"
        )
    return text


def _delimiter(header: str) -> str:
    """What separates the columns: whatever divides the header into path, pid and others."""
    for delimiter in _DELIMITERS:
        names = {_column_name(name.strip().strip('"')) for name in header.split(delimiter)}
        if {"path", "pid"} <= names:
            return delimiter
    return _DELIMITERS[0]


def _column_name(name: str) -> str:
    """The name of a column as it would be written here, if only case and spaces differ."""
    from muva.config import PARTS

    boxes = {f"{part}_{corner}" for part in PARTS for corner in _CORNERS}
    plain = name.strip().lower()
    return plain if plain in {"path", "pid", "camid", "split", "caption", *boxes} else name


def _text(value: object) -> str:
    """A cell as text: integral floats as integers, and nothing for one that is empty."""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value) if value.is_integer() else value)
    return "" if value is None else str(value)


def _label(value: object) -> str:
    """A pid, camera, split or corner as text; what stands for a missing value in tables is none."""
    text = _text(value).strip()
    return "" if text in _MISSING else text


def _texts(
    table: pa.Table, column: str, file: Path, *, text: Callable[[object], str] = _text
) -> list[str]:
    values = list(map(text, table[column].to_pylist()))
    if "" in values:
        raise MuvaError(f"the list {file}: {column} is empty in row {values.index('') + 1}")
    return values


def _camids(table: pa.Table) -> Sequence[int | None]:
    if "camid" not in table.column_names:
        return [None] * len(table)
    return numbered_cameras(list(map(_label, table["camid"].to_pylist())))


def _splits(table: pa.Table, file: Path) -> list[Split] | None:
    if "split" not in table.column_names:
        return None
    split_of_name: dict[str, Split] = {split: split for split in SPLITS}
    names = _texts(table, "split", file, text=_label)
    for row, name in enumerate(names, start=1):
        if name not in split_of_name:
            raise MuvaError(
                f"the list {file}: expected a split of {', '.join(SPLITS)}, found {name!r} in row "
                f"{row}"
            )
    return [split_of_name[name] for name in names]


def _boxes(table: pa.Table, file: Path) -> list[Mapping[str, Box | None]] | None:
    """The boxes of each image; a part without columns, or with empty ones, is out of sight."""
    from muva.config import PARTS

    columns = {part: [f"{part}_{corner}" for corner in _CORNERS] for part in PARTS}
    present = {part for part in PARTS if set(columns[part]) & set(table.column_names)}
    if not present:
        return None
    missing = [n for p in present for n in columns[p] if n not in table.column_names]
    if missing:
        raise MuvaError(f"the list {file}: expected all corners of a part, {missing[0]} is missing")
    corners = {p: zip(*(table[n].to_pylist() for n in columns[p]), strict=True) for p in present}
    per_part = {
        part: [_box(values, file, part, row) for row, values in enumerate(rows, start=1)]
        for part, rows in corners.items()
    }
    return [
        {part: per_part[part][index] if part in present else None for part in PARTS}
        for index in range(len(table))
    ]


def _box(values: tuple[Any, ...], file: Path, part: str, row: int) -> Box | None:
    texts = [_label(value).replace(",", ".") for value in values]  # perhaps a decimal comma
    if not any(texts):
        return None
    try:
        x0, y0, x1, y1 = map(float, texts)
    except ValueError:
        x0, y0, x1, y1 = 1.0, 1.0, 0.0, 0.0
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise MuvaError(
            f"the list {file}: expected 0 <= x0 < x1 <= 1 and the same for y, found the {part} box "
            f"{values} in row {row}. Boxes are fractions of the image, not pixels"
        )
    return x0, y0, x1, y1
