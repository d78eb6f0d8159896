"""The gallery of a service: what requests may search, add, forget and see of it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muva.data.images import UnreadableImageError, decode_rgb
from muva.data.records import encoded_file
from muva.errors import MuvaError
from workflows.serving.fields import ForgetFields, RowFields, SearchFields

if TYPE_CHECKING:
    import numpy as np

    from muva.retrieval.gallery_rows import Match
    from muva.retrieval.gallery_table import GalleryTable

SHOWN_SIDE = 384
"""The longest side of a picture in the page, in pixels."""


class ServedGallery:
    """A gallery of the model that is served."""

    def __init__(self, table: GalleryTable) -> None:
        self._table = table

    def search(self, feature: np.ndarray, fields: SearchFields) -> list[Match]:
        """The images most similar to a feature, most similar first."""
        from muva.retrieval.gallery_rows import GalleryFilter

        only = GalleryFilter(
            camids=tuple(fields.camids),
            places=tuple(fields.places),
            after=fields.after,
            before=fields.before,
        )
        return self._table.search(feature, top=fields.top, only=only)

    def add(self, features: np.ndarray, rows: Sequence[RowFields]) -> None:
        """Add images. Their pictures are not kept, so nothing will show them."""
        from muva.retrieval.gallery_rows import GalleryRow

        self._table.add(features, [GalleryRow(**row.model_dump()) for row in rows])

    def forget(self, fields: ForgetFields) -> int:
        """Delete people and images; how many images that were."""
        return self._table.forget(pids=fields.pids, image_ids=fields.image_ids)

    def describe(self) -> dict[str, Any]:
        """What is in it."""
        summary = self._table.summary()
        return {
            "name": self._table.name,
            "images": summary.images,
            "people": summary.people,
            "camids": list(summary.camids),
            "places": list(summary.places),
            "first": None if summary.first is None else summary.first.isoformat(),
            "last": None if summary.last is None else summary.last.isoformat(),
        }

    def picture(self, image_id: str) -> bytes | None:
        """A small JPEG of an image, without its metadata; None where there is none to be shown.

        A file is opened only for a row of the gallery, and only inside the folder of that row,
        wherever links in it lead.
        """
        row = self._table.row(image_id)
        if row is None or row.folder is None:
            return None
        try:
            folder = Path(row.folder).resolve()
            file = (folder / row.image_id).resolve()
            if not file.is_relative_to(folder) or not file.is_file():
                return None
            image = decode_rgb(encoded_file(file))
        except (OSError, ValueError, UnreadableImageError):
            return None
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        written = io.BytesIO()
        image.save(written, "JPEG", quality=85)
        return written.getvalue()


def open_served(uri: str, weights: str) -> ServedGallery:
    """Open a gallery for the model with these weights (SHA-256).

    Raises:
        MuvaError: there is none, or another model computed its features.
    """
    from muva.retrieval.gallery_table import open_gallery

    table = open_gallery(uri)
    check_same_model(table, weights)
    return ServedGallery(table)


def check_same_model(table: GalleryTable, weights: str) -> None:
    """Check that the model with these weights computed a gallery's features; MuvaError if not."""
    if table.source.weights != weights:
        raise MuvaError(
            f"gallery {table.uri}: its features were computed by {table.source.model}, not by the "
            "model that is to be served. Features of two models cannot be compared: serve that "
            "model, or make a gallery for this one"
        )
