"""Feature files, written by muva or any other program: `.npz` or `.parquet` with these five names.

`features` (images x width), `ids`, `pids` and, if known, `camids` and `split` (query or gallery).
Without `split`, every image is both a query and in the gallery, and ignores itself. Features stay
on disk as a memory map: of the file itself for an uncompressed `.npz`, otherwise of a temporary
copy.
"""

from __future__ import annotations

import io
import math
import struct
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muva.errors import MuvaError

_REQUIRED = ("features", "ids", "pids")
_OPTIONAL = ("camids", "split")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of M images with their identities and cameras."""

    features: np.ndarray
    """(M, D) float16, float32 or float64; memory-mapped if read from a file."""
    ids: np.ndarray
    """(M,) str: unique ids of the images."""
    pids: np.ndarray
    """(M,) int64."""
    camids: np.ndarray | None
    """(M,) int64; None if unknown."""
    split: np.ndarray | None
    """(M,) "query" or "gallery"; None if every image is both."""

    def __len__(self) -> int:
        return len(self.pids)

    def retrieval_inputs(self, *, queries: np.ndarray | None = None) -> dict[str, Any]:
        """These features as keyword arguments of `evaluate` and `ranked_lists`.

        `queries` are the indices to use as queries instead of all.
        """
        query_indices = self.queries if queries is None else queries
        inputs: dict[str, Any] = {}
        for side, places in (("query", query_indices), ("gallery", self.gallery)):
            chosen = _as_slice(places)
            inputs |= {
                f"{side}_features": _select_rows(self.features, places),
                f"{side}_pids": self.pids[chosen],
                f"{side}_camids": None if self.camids is None else self.camids[chosen],
                f"{side}_ids": self.ids[chosen],
            }
        return inputs

    def select(self, *, query: np.ndarray, gallery: np.ndarray) -> Features:
        """The images at these indices, as queries and gallery."""
        places = np.concatenate([query, gallery])
        return Features(
            features=self.features[places],
            ids=self.ids[places],
            pids=self.pids[places],
            camids=None if self.camids is None else self.camids[places],
            split=np.repeat(["query", "gallery"], [len(query), len(gallery)]),
        )

    @property
    def queries(self) -> np.ndarray:
        """Indices of the queries, in order."""
        return np.arange(len(self)) if self.split is None else np.flatnonzero(self.split == "query")

    @property
    def gallery(self) -> np.ndarray:
        """Indices of the gallery, in order."""
        if self.split is None:
            return np.arange(len(self))
        return np.flatnonzero(self.split == "gallery")


MAX_IN_MEMORY_BYTES = 256 * 2**20
"""Larger arrays are memory-mapped."""


def allocate_or_memmap(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array: in memory or, if it is large, in a temporary memory-mapped file.

    The file is deleted immediately; its space is freed when the last array that uses it is gone.
    """
    if math.prod(shape) * np.dtype(dtype).itemsize <= MAX_IN_MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.NamedTemporaryFile(prefix="muva-features-", suffix=".npy") as file:
        return np.lib.format.open_memmap(Path(file.name), "w+", dtype, shape)


def _select_rows(features: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Some rows: a view if they are contiguous, otherwise a copy that may be memory-mapped."""
    selection = _as_slice(places)
    if isinstance(selection, slice):
        return features[selection]
    copy = allocate_or_memmap((len(places), features.shape[1]), features.dtype)
    for start in range(0, len(places), _CHUNK_ROWS):
        copy[start : start + _CHUNK_ROWS] = features[places[start : start + _CHUNK_ROWS]]
    return copy


_CHUNK_ROWS = 8192


def _as_slice(places: np.ndarray) -> np.ndarray | slice:
    """Contiguous indices as a slice, so that indexing makes no copy."""
    if len(places) and np.array_equal(places, np.arange(places[0], places[0] + len(places))):
        return slice(int(places[0]), int(places[0]) + len(places))
    return places


def write_features(path: Path, features: Features) -> None:
    """Write a file for `read_features`; the suffix determines the format."""
    columns = {
        name: getattr(features, name)
        for name in (*_REQUIRED, *_OPTIONAL)
        if getattr(features, name) is not None
    }
    if _file_format(path) == ".npz":
        with path.open("wb") as file:
            np.savez(file, **columns)
        return
    width = features.features.shape[1]
    flat = pa.array(np.ascontiguousarray(features.features).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, width)
    pq.write_table(pa.table(columns), path)


def read_features(path: Path) -> Features:
    """The features in a file. Raises MuvaError naming what is missing, damaged or contradictory."""
    columns = read_columns(path)
    return Features(
        features=columns["features"],
        ids=columns["ids"],
        pids=columns["pids"],
        camids=columns.get("camids"),
        split=columns.get("split"),
    )


def read_columns(path: Path, *, required: Sequence[str] = _REQUIRED) -> dict[str, np.ndarray]:
    """The arrays in a file under the five names, checked as in `read_features`.

    Raises MuvaError if one of `required`, which must include `features` and `ids`, is missing.
    """
    file_format = _file_format(path)
    if not path.is_file():
        raise MuvaError(f"features {path}: expected a file, found none")
    try:
        columns = _from_npz(path) if file_format == ".npz" else _from_parquet(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise MuvaError(f"features {path}: cannot be read: {error}") from error
    missing = [name for name in required if name not in columns]
    if missing:
        raise MuvaError(
            f"features {path}: expected {', '.join(required)} and, if known, "
            f"{', '.join(_optional_columns(required))}; {', '.join(missing)} missing, found "
            f"{', '.join(columns) or 'nothing'}"
        )
    return _checked(columns, path)


def _optional_columns(required: Sequence[str]) -> list[str]:
    return [name for name in (*_REQUIRED, *_OPTIONAL) if name not in required]


def _file_format(path: Path) -> str:
    if path.suffix.lower() not in (".npz", ".parquet"):
        raise MuvaError(f"features {path}: expected a name that ends in .npz or .parquet")
    return path.suffix.lower()


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise ValueError("expected an archive of named arrays, as numpy.savez writes it")
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in (*_REQUIRED, *_OPTIONAL) if name in arrays]
        return {n: _map_or_read_member(path, n) if n == "features" else arrays[n] for n in names}


def _map_or_read_member(path: Path, name: str) -> np.ndarray:
    """An array of an archive: mapped in place or, if compressed, a copy."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{name} has the unknown version {version} of NumPy's format")
        shape, by_columns, dtype = read_header(member)
        if dtype.hasobject:
            raise ValueError(f"{name} contains objects, which are never loaded")
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type == zipfile.ZIP_STORED:
            start, size = member.tell(), math.prod(shape) * dtype.itemsize
            while member.read(_CHUNK_BYTES):  # reading to the end verifies the checksum
                pass
            if member.tell() - start < size:
                raise EOFError(f"{name} ends before its {math.prod(shape)} numbers")
            order = "F" if by_columns else "C"
            return np.memmap(path, dtype, "r", _data_offset(path, info) + start, shape, order)
        copy = allocate_or_memmap(shape[::-1] if by_columns else shape, dtype)
        _fill(copy, member)
        return copy.T if by_columns else copy


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Offset of a member's data, from its local header (PKWARE APPNOTE 4.3.7)."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + name_length + extra_length


def _fill(array: np.ndarray, source: IO[bytes] | io.BufferedIOBase) -> None:
    """Read the content of an array in chunks."""
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK_BYTES):
        some = source.read(min(_CHUNK_BYTES, len(flat) - start))
        if len(some) < min(_CHUNK_BYTES, len(flat) - start):
            raise EOFError("the features are truncated")
        flat[start : start + len(some)] = np.frombuffer(some, np.uint8)


_CHUNK_BYTES = 2**24


def _from_parquet(path: Path) -> dict[str, np.ndarray]:
    file = pq.ParquetFile(path)
    names = [n for n in (*_REQUIRED, *_OPTIONAL) if n in file.schema_arrow.names]
    table = file.read(columns=[name for name in names if name != "features"])
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if column.null_count == len(column) and name in _OPTIONAL:
            continue  # a column of nulls means that the values are unknown
        if column.null_count:
            raise ValueError(f"{name} is empty in {column.null_count} of {len(column)} rows")
        columns[name] = column.to_numpy(zero_copy_only=False)
    if "features" in names:
        columns["features"] = _read_matrix(file)
    return columns


def _read_matrix(file: pq.ParquetFile) -> np.ndarray:
    """The column of equally long lists as a matrix, read in chunks."""
    total, done = file.metadata.num_rows, 0
    matrix = np.empty((0, 0), np.float32)
    for batch in file.iter_batches(_CHUNK_ROWS, columns=["features"]):
        column = batch.column(0)
        if column.null_count:
            raise ValueError(f"features is empty in {column.null_count} rows from {done} on")
        if not hasattr(column, "flatten"):
            raise ValueError(f"features must be lists of numbers, found {column.type}")
        widths = {len(row) for row in column}
        values = column.flatten().to_numpy(zero_copy_only=False)
        if not done:
            matrix = allocate_or_memmap((total, len(values) // len(column)), values.dtype)
        widths.add(matrix.shape[1])
        if len(widths) > 1:
            raise ValueError(f"features have different widths: {sorted(widths)[:5]}")
        matrix[done : done + len(column)] = values.reshape(len(column), -1)
        done += len(column)
    return matrix


def _checked(columns: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The columns, validated and converted to the types of `Features`."""
    features = columns["features"]
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features):
        raise MuvaError(
            f"features {path}: expected floating-point numbers of shape (images, width), found "
            f"{features.dtype} of shape {features.shape}"
        )
    for name, values in columns.items():
        if values.shape[:1] != (len(features),):
            raise MuvaError(
                f"features {path}: {len(features)} rows of features, but {name} has shape "
                f"{values.shape}"
            )
    for name in ("pids", "camids"):
        if name in columns and columns[name].dtype.kind not in "iu":
            raise MuvaError(
                f"features {path}: expected integers as {name}, found {columns[name].dtype}"
            )
    ids = columns["ids"].astype(str)
    if len(np.unique(ids)) < len(ids):
        raise MuvaError(f"features {path}: ids must be unique")
    split = columns["split"].astype(str) if "split" in columns else None
    if split is not None and set(np.unique(split)) != {"query", "gallery"}:
        raise MuvaError(
            f"features {path}: expected query and gallery as split, found "
            f"{', '.join(np.unique(split)[:5])}"
        )
    if (columns.get("camids", np.zeros(1)) < 0).any():
        raise MuvaError(f"features {path}: camids must not be negative; omit them if unknown")
    numbers = {
        name: columns[name].astype(np.int64) for name in ("pids", "camids") if name in columns
    }
    texts = {"ids": ids} if split is None else {"ids": ids, "split": split}
    return {"features": features, **numbers, **texts}
