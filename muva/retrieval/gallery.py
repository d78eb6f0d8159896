"""Searchable galleries on disk: features of many images, and the model that they are from.

A gallery is a features file (`muva.retrieval.features`) in Parquet whose metadata records the
model, the data that was embedded, and where the images are. Identities may be unknown; if they are
known, the file can be evaluated as it is.
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
from muva.retrieval.similar import most_similar

GALLERY_FORMAT = 1
_METADATA = b"muva"


@dataclass(frozen=True, kw_only=True)
class EmbeddingSource:
    """The model and the images that features were computed from."""

    model: str
    """Address of the model."""
    weights: str
    """SHA-256 of the weights, which identifies the model wherever it is stored."""
    image_height: int
    image_width: int
    feature_dim: int
    folder: str | None = None
    """Folder of the images; ids are relative to it."""
    dataset: str | None = None
    """Address of the data set, if the images are from a data set."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Features of M images with their ids and, if known, identities and cameras."""

    features: np.ndarray
    """(M, F) float32 of unit length; memory-mapped if read from a large file."""
    ids: np.ndarray
    """(M,) str, unique."""
    pids: np.ndarray | None
    """(M,) int64; None if unknown."""
    camids: np.ndarray | None
    """(M,) int64; None if unknown."""
    split: np.ndarray | None
    """(M,) "query" or "gallery"; None if there are no splits."""
    source: EmbeddingSource

    def __len__(self) -> int:
        return len(self.ids)

    def index_of(self, image_id: str) -> int | None:
        """Index of an image id, or None if it is not in the gallery."""
        indices = np.flatnonzero(self.ids == image_id)
        return int(indices[0]) if len(indices) else None

    def most_similar(
        self, feature: np.ndarray, *, top: int, exclude: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Indices and cosines, (top,) each, of the images that are most similar to a feature (F,).

        The image at index `exclude` is left out. See `muva.retrieval.similar`.
        """
        allowed = None
        if exclude is not None:
            allowed = np.ones(len(self), bool)
            allowed[exclude] = False
        return most_similar(self.features, feature, top=top, allowed=allowed)

    def describe(self, index: int) -> dict[str, Any]:
        """image_id, pid and camid of one image; None if unknown."""
        return {
            "image_id": str(self.ids[index]),
            "pid": None if self.pids is None else int(self.pids[index]),
            "camid": None if self.camids is None else int(self.camids[index]),
        }


def write_gallery(file: Path, gallery: Gallery) -> None:
    """Write a gallery atomically; MuvaError if the file cannot be written."""
    columns: dict[str, Any] = {
        name: pa.array(values)
        for name in ("ids", "pids", "camids", "split")
        if (values := getattr(gallery, name)) is not None
    }
    flat = pa.array(np.ascontiguousarray(gallery.features, dtype=np.float32).reshape(-1))
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, gallery.features.shape[1])
    description = {"format_version": GALLERY_FORMAT, **asdict(gallery.source)}
    table = pa.table(columns).replace_schema_metadata({_METADATA: json.dumps(description)})
    try:
        with tempfile.TemporaryDirectory(prefix=".gallery-", dir=file.parent) as folder:
            written = Path(folder) / "written.parquet"
            pq.write_table(table, written)
            os.replace(written, file)  # noqa: PTH105
    except OSError as error:
        raise MuvaError(f"features {file}: cannot be written: {error}") from error


def read_gallery(file: Path) -> Gallery:
    """The gallery in a file. Raises MuvaError naming what is missing or damaged."""
    columns = read_columns(file, required=("features", "ids"))
    try:
        description = json.loads(pq.read_schema(file).metadata[_METADATA])
        found = description.pop("format_version")
        if found != GALLERY_FORMAT:
            raise MuvaError(
                f"features {file}: expected format {GALLERY_FORMAT}, found {found}. "
                "Embed the images again"
            )
        source = EmbeddingSource(**description)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise MuvaError(
            f"features {file}: expected the model in the metadata of the file, found none, so it "
            "cannot be searched. Use a file that `muva embed` wrote"
        ) from error
    return Gallery(
        features=columns["features"],
        ids=columns["ids"],
        pids=columns.get("pids"),
        camids=columns.get("camids"),
        split=columns.get("split"),
        source=source,
    )
