"""Features on disk, ours or any other program's: `.npz` or `.parquet` with the same five names.

`features` (images x width), `ids`, `pids`, and, where known, `camids` and `split` (query or
gallery). Without `split` every image is a query and in the gallery, and ignores itself.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muva.errors import MuvaError

_NEEDED = ("features", "ids", "pids")
_OPTIONAL = ("camids", "split")


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of M images and who is on them."""

    features: np.ndarray
    """(M, D) float32, or float16."""
    ids: np.ndarray
    """(M,) str: unique names of the images."""
    pids: np.ndarray
    """(M,) int64."""
    camids: np.ndarray | None
    """(M,) int64, None when unknown."""
    split: np.ndarray | None
    """(M,) "query" or "gallery"; None: every image is both."""

    def __len__(self) -> int:
        return len(self.pids)

    def retrieval_inputs(self, *, queries: np.ndarray | None = None) -> dict[str, Any]:
        """The arguments of `evaluate` and `ranked_lists` that these features give.

        `queries`: positions that ask, instead of all queries.
        """
        asking = self.queries if queries is None else queries
        inputs: dict[str, Any] = {}
        for side, places in (("query", asking), ("gallery", self.gallery)):
            chosen = _as_slice(places)
            inputs |= {
                f"{side}_features": self.features[chosen],
                f"{side}_pids": self.pids[chosen],
                f"{side}_camids": None if self.camids is None else self.camids[chosen],
                f"{side}_ids": self.ids[chosen],
            }
        return inputs

    def chosen(self, *, query: np.ndarray, gallery: np.ndarray) -> Features:
        """The images at these positions, as queries and gallery."""
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
        """Positions of the queries, in order."""
        return np.arange(len(self)) if self.split is None else np.flatnonzero(self.split == "query")

    @property
    def gallery(self) -> np.ndarray:
        """Positions of the gallery, in order."""
        if self.split is None:
            return np.arange(len(self))
        return np.flatnonzero(self.split == "gallery")


def _as_slice(places: np.ndarray) -> np.ndarray | slice:
    """Positions that follow each other as a slice: what is cut out by it is not copied."""
    if len(places) and np.array_equal(places, np.arange(places[0], places[0] + len(places))):
        return slice(int(places[0]), int(places[0]) + len(places))
    return places


def write_features(path: Path, features: Features) -> None:
    """Write a file that `read_features` reads; the name's ending decides the form."""
    columns = {
        name: getattr(features, name)
        for name in (*_NEEDED, *_OPTIONAL)
        if getattr(features, name) is not None
    }
    if _form(path) == ".npz":
        with path.open("wb") as file:
            np.savez(file, **columns)
        return
    width = features.features.shape[1]
    flat = pa.array(np.ascontiguousarray(features.features).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, width)
    pq.write_table(pa.table(columns), path)


def read_features(path: Path) -> Features:
    """The features in a file; MuvaError that names what is missing, damaged or contradictory."""
    form = _form(path)
    if not path.is_file():
        raise MuvaError(f"features {path}: there is no such file")
    try:
        columns = _from_npz(path) if form == ".npz" else _from_parquet(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise MuvaError(f"features {path}: cannot be read: {error}") from error
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise MuvaError(
            f"features {path}: expected {', '.join(_NEEDED)} and, where known, "
            f"{', '.join(_OPTIONAL)}; {', '.join(missing)} missing, found "
            f"{', '.join(columns) or 'nothing'}"
        )
    return _checked(columns, path)


def _form(path: Path) -> str:
    if path.suffix.lower() not in (".npz", ".parquet"):
        raise MuvaError(f"features {path}: expected a name that ends in .npz or .parquet")
    return path.suffix.lower()


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, not an archive of named ones")
    with archive as arrays:
        return {name: arrays[name] for name in (*_NEEDED, *_OPTIONAL) if name in arrays}


def _from_parquet(path: Path) -> dict[str, np.ndarray]:
    names = pq.read_schema(path).names
    table = pq.read_table(path, columns=[n for n in (*_NEEDED, *_OPTIONAL) if n in names])
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if column.null_count == len(column) and name in _OPTIONAL:
            continue  # a column of nothing but nulls says that it is unknown
        if column.null_count:
            raise ValueError(f"{name} is empty in {column.null_count} of {len(column)} rows")
        if name == "features":
            columns[name] = _matrix(column)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def _matrix(column: Any) -> np.ndarray:
    """A column of lists, all of one length, as rows."""
    if not hasattr(column, "flatten"):
        raise ValueError(f"features must be lists of numbers, found {column.type}")
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = (
        {len(row) for row in column} if not pa.types.is_fixed_size_list(column.type) else set()
    )
    if len(lengths) > 1:
        raise ValueError(f"features have different widths: {sorted(lengths)[:5]}")
    return values.reshape(len(column), -1)


def _checked(columns: dict[str, np.ndarray], path: Path) -> Features:
    features = columns["features"]
    if features.ndim != 2 or features.dtype.kind != "f" or not len(features):
        raise MuvaError(
            f"features {path}: expected floating-point numbers of shape (images, width), found "
            f"{features.dtype} of shape {features.shape}"
        )
    for name, values in columns.items():
        if values.shape[:1] != (len(features),):
            raise MuvaError(
                f"features {path}: {len(features)} rows of features but {name} of shape "
                f"{values.shape}"
            )
    for name in ("pids", "camids"):
        if name in columns and columns[name].dtype.kind not in "iu":
            raise MuvaError(
                f"features {path}: expected whole numbers as {name}, found {columns[name].dtype}"
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
        raise MuvaError(f"features {path}: camids must not be negative; leave them out if unknown")
    return Features(
        features=features if features.dtype in (np.float16, np.float32) else features.astype("f4"),
        ids=ids,
        pids=columns["pids"].astype(np.int64),
        camids=columns["camids"].astype(np.int64) if "camids" in columns else None,
        split=split,
    )
