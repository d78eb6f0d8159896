"""What `muva search` looks into: a file of features, or a gallery that grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from muva.errors import MuvaError
from muva.retrieval.gallery import EmbeddingSource, Gallery, read_gallery
from workflows.session import Session
from workflows.steps.galleries import gallery_names, gallery_uri, named_gallery

if TYPE_CHECKING:
    from muva.retrieval.gallery_rows import GalleryFilter, GalleryRow, Match


class Searched(Protocol):
    """Images that can be searched; `muva.retrieval.gallery_table.GalleryTable` says how."""

    @property
    def source(self) -> EmbeddingSource:
        """What the features are."""
        ...

    def __len__(self) -> int: ...

    def feature(self, image_id: str) -> np.ndarray | None:
        """The feature (F,) of an image; None if it is not there."""
        ...

    def row(self, image_id: str) -> GalleryRow | None:
        """What is known of an image; None if it is not there."""
        ...

    def search(
        self,
        feature: np.ndarray,
        *,
        top: int,
        only: GalleryFilter | None = None,
        exclude: str | None = None,
    ) -> list[Match]:
        """The images most similar to a feature, most similar first."""
        ...


def searched(session: Session, reference: str) -> Searched:
    """The file of features, or the gallery, that a command names.

    Raises:
        MuvaError: there is neither.
    """
    file = Path(reference).expanduser()
    if file.is_file():
        return FileSearch(file=file, gallery=read_gallery(file))
    uri = gallery_uri(session, reference) if file.suffix != ".parquet" else None
    if uri is not None and ("://" in uri or Path(uri).is_dir() or _in_store(session, reference)):
        return named_gallery(session, reference)
    names = ", ".join(gallery_names(session)) or "none"
    raise MuvaError(
        f"{reference}: expected a file of features from `muva embed`, or a gallery; found neither. "
        f"Galleries in the store: {names}"
    )


def _in_store(session: Session, name: str) -> bool:
    return name in gallery_names(session)


@dataclass(frozen=True, kw_only=True)
class FileSearch:
    """A search in a file of features, always exact."""

    file: Path
    gallery: Gallery

    @property
    def source(self) -> EmbeddingSource:
        """What the features are."""
        return self.gallery.source

    def __len__(self) -> int:
        return len(self.gallery)

    def feature(self, image_id: str) -> np.ndarray | None:
        """See `Searched`."""
        index = self.gallery.index_of(image_id)
        return None if index is None else self.gallery.features[index]

    def row(self, image_id: str) -> GalleryRow | None:
        """See `Searched`."""
        index = self.gallery.index_of(image_id)
        return None if index is None else self._row(index)

    def search(
        self,
        feature: np.ndarray,
        *,
        top: int,
        only: GalleryFilter | None = None,
        exclude: str | None = None,
    ) -> list[Match]:
        """See `Searched`.

        Raises:
            MuvaError: only some images are asked for, which a file cannot tell.
        """
        from muva.retrieval.gallery_rows import GalleryFilter, Match

        if only not in (None, GalleryFilter()):
            raise MuvaError(
                f"{self.file}: a file of features is searched as a whole. To search by camera, time"
                " or place, add it to a gallery: muva gallery create, muva gallery add"
            )
        left_out = None if exclude is None else self.gallery.index_of(exclude)
        indices, cosines = self.gallery.most_similar(feature, top=top, exclude=left_out)
        return [
            Match(row=self._row(index), cosine=float(cosine))
            for index, cosine in zip(indices.tolist(), cosines, strict=True)
        ]

    def _row(self, index: int) -> GalleryRow:
        from muva.retrieval.gallery_rows import GalleryRow

        source = self.gallery.source
        described = self.gallery.describe(index)
        return GalleryRow(**described, folder=source.folder, dataset=source.dataset)
