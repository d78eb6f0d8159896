"""Galleries that grow, by their names in the store, and what they know of some people."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from muva.data.artifacts import check_name
from muva.errors import SettingsError
from muva.retrieval.gallery import EmbeddingSource
from workflows.session import Session

if TYPE_CHECKING:
    from pyarrow.compute import Expression

    from muva.retrieval.gallery_table import GalleryTable

GALLERIES = "galleries"
"""The part of a store where galleries are."""
SUFFIX = ".lance"


@dataclass(frozen=True, kw_only=True)
class InGallery:
    """Images of some people in a gallery."""

    gallery: str
    images: int


def named_gallery(session: Session, name: str) -> GalleryTable:
    """The gallery of this name in the store, or at this folder or `s3://` address."""
    from muva.retrieval.gallery_table import open_gallery

    return open_gallery(gallery_uri(session, name))


def create_named(session: Session, name: str, source: EmbeddingSource) -> GalleryTable:
    """A new, empty gallery for the features of a model."""
    from muva.retrieval.gallery_table import create_gallery

    return create_gallery(gallery_uri(session, name), source)


def gallery_uri(session: Session, name: str) -> str:
    """Where the gallery of a name is."""
    name = name.removeprefix("file://")
    if name.startswith("s3://"):
        return name.rstrip("/")
    if "://" in name:
        raise SettingsError(
            f"gallery {name}: expected a name in the store, a folder, or s3://BUCKET/PREFIX"
        )
    if "/" in name or name.endswith(SUFFIX):
        return str(Path(name).expanduser().absolute())
    return f"{session.store.uri}/{GALLERIES}/{check_name(name)}{SUFFIX}"


def gallery_names(session: Session) -> list[str]:
    """The galleries in the store."""
    found = (key.split("/") for key in session.store.list(f"{GALLERIES}/"))
    return sorted(
        {
            parts[1].removesuffix(SUFFIX)
            for parts in found
            if len(parts) > 2 and parts[2] == "_versions" and parts[1].endswith(SUFFIX)
        }
    )


def in_galleries(
    session: Session, dataset: str, *, version: str, pids: Collection[int], images: Collection[str]
) -> list[InGallery]:
    """Where the store's galleries have images of some people of a data set.

    Args:
        dataset: its name.
        version: the URI of the version in which the people have these pids.
        pids: the people.
        images: the ids of their images, by which they are found in other versions.
    """
    found = []
    for name in gallery_names(session):
        gallery = named_gallery(session, name)
        condition = _of_people(gallery, dataset, version, pids, images)
        if condition is not None and (count := gallery.count(condition)):
            found.append(InGallery(gallery=name, images=count))
    return found


def forget_in_galleries(
    session: Session, dataset: str, *, version: str, pids: Collection[int], images: Collection[str]
) -> None:
    """Delete what `in_galleries` finds."""
    for name in gallery_names(session):
        gallery = named_gallery(session, name)
        condition = _of_people(gallery, dataset, version, pids, images)
        gallery.forget_where(condition)  # also where there is none: see there


def _of_people(
    gallery: GalleryTable,
    dataset: str,
    version: str,
    pids: Collection[int],
    images: Collection[str],
) -> Expression | None:
    """The condition on a gallery's images; None if none is from the data set."""
    import pyarrow.compute as pc

    versions = [
        one for one in gallery.datasets() if one.rpartition("/")[2].rpartition("-")[0] == dataset
    ]
    if not versions:
        return None
    of_people = (pc.field("dataset") == pc.scalar(version)) & pc.field("pid").isin(list(pids))
    shown = pc.field("dataset").isin(versions) & pc.field("image_id").isin(list(images))
    return of_people | shown
