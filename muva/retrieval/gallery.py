"""Galleries on disk: the features of many images with the model that they are of, to search in.

A gallery is a features file (`muva.retrieval.features`) in Parquet, with one more thing: the file's
metadata says which model made the features, of what, and where the images are. The people may be
unknown; where they are known, evaluation takes the file as it is.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from muva.errors import MuvaError
from muva.retrieval.features import read_columns

GALLERY_FORMAT = 1
_METADATA = b"muva"
_BLOCK_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class EmbeddedBy:
    """The model that features are of, and the images they are of."""

    model: str
    """Its address."""
    weights: str
    """SHA-256 of its weights: what tells models apart, wherever they are kept."""
    image_height: int
    image_width: int
    feature_dim: int
    folder: str | None = None
    """The images' folder; ids are paths relative to it."""
    dataset: str | None = None
    """Address of the data set that they are from instead."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Features of M images with what is known of them."""

    features: np.ndarray
    """(M, F) float32 of unit length; of a file: mapped where large."""
    ids: np.ndarray
    """(M,) str, unique."""
    pids: np.ndarray | None
    """(M,) int64; None: unknown."""
    camids: np.ndarray | None
    """(M,) int64; None: unknown."""
    split: np.ndarray | None
    """(M,) "query" or "gallery"; None: there is no such difference."""
    by: EmbeddedBy

    def __len__(self) -> int:
        return len(self.ids)

    def place_of(self, image_id: str) -> int | None:
        """Where an image is, None where it is not."""
        places = np.flatnonzero(self.ids == image_id)
        return int(places[0]) if len(places) else None

    def most_similar(
        self, feature: np.ndarray, *, top: int, without: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places of the `top` images most like a feature (F,), and their cosines: (top,) each.

        Equal ones go by place; `without` is the place of an image that is left out.
        """
        from muva.retrieval.ranked_lists import nearest  # with Numba and SciPy: to search alone

        cosines = np.empty(len(self))
        for first in range(0, len(self), _BLOCK_ROWS):
            some = slice(first, first + _BLOCK_ROWS)
            cosines[some] = self.features[some].astype(np.float64) @ feature.astype(np.float64)
        if without is not None:
            cosines[without] = -np.inf
        places = nearest(-cosines, top)
        return places, cosines[places]

    def told(self, place: int) -> dict[str, Any]:
        """What is known of one image: image_id, pid, camid (None: unknown)."""
        return {
            "image_id": str(self.ids[place]),
            "pid": None if self.pids is None else int(self.pids[place]),
            "camid": None if self.camids is None else int(self.camids[place]),
        }


def write_gallery(file: Path, gallery: Gallery) -> None:
    """Write a gallery as a whole or not at all; MuvaError where that cannot be."""
    columns: dict[str, Any] = {
        name: pa.array(values)
        for name in ("ids", "pids", "camids", "split")
        if (values := getattr(gallery, name)) is not None
    }
    flat = pa.array(np.ascontiguousarray(gallery.features, dtype=np.float32).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, gallery.features.shape[1])
    described = {"format_version": GALLERY_FORMAT, **asdict(gallery.by)}
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(described)})
    try:
        with tempfile.TemporaryDirectory(prefix=".gallery-", dir=file.parent) as folder:
            written = Path(folder) / "written.parquet"
            pq.write_table(table, written)
            os.replace(written, file)  # noqa: PTH105
    except OSError as error:
        raise MuvaError(f"features {file}: cannot be written: {error}") from error


def read_gallery(file: Path) -> Gallery:
    """The gallery in a file; MuvaError that names what is missing or damaged."""
    columns = read_columns(file, needed=("features", "ids"))
    try:
        described = json.loads(pq.read_schema(file).metadata[_METADATA])
        found = described.pop("format_version")
        if found != GALLERY_FORMAT:
            raise MuvaError(
                f"features {file}: its format is {found}, this version of muva knows "
                f"{GALLERY_FORMAT}. Embed the images again"
            )
        by = EmbeddedBy(**described)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise MuvaError(
            f"features {file}: nothing in it says which model they are of, so nothing can be "
            "searched for in them. Expected a file that `muva embed` wrote"
        ) from error
    return Gallery(
        features=columns["features"],
        ids=columns["ids"],
        pids=columns.get("pids"),
        camids=columns.get("camids"),
        split=columns.get("split"),
        by=by,
    )
