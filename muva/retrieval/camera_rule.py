"""The only place that decides which gallery images count for a query (Market-1501's protocol).

Junk (pid -1), and gallery images with both the identity and the camera of the query, are ignored.
Without camera ids, a query only ignores its own image. All other gallery images of its identity are
matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from muva.data.records import JUNK_PID
from muva.errors import MuvaError

Integers = np.ndarray | Tensor | Sequence[int]
Identifiers = np.ndarray | Sequence[str] | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class ImageLabels:
    """Identity and camera of each image on one side, query or gallery."""

    pids: np.ndarray
    camids: np.ndarray | None
    ids: np.ndarray | None

    def __len__(self) -> int:
        return len(self.pids)


class CameraRule:
    """Determines the matches and the ignored gallery images of each query."""

    def __init__(self, query: ImageLabels, gallery: ImageLabels):
        if (query.camids is None) != (gallery.camids is None):
            known, unknown = (
                ("query", "gallery") if gallery.camids is None else ("gallery", "query")
            )
            raise MuvaError(
                f"camera ids are given for the {known} but not for the {unknown} images. "
                "Give both, or neither; each query then only ignores its own image"
            )
        self.query, self._gallery = query, gallery
        self.junk = np.flatnonzero(gallery.pids == JUNK_PID)
        """Gallery images that count for no query."""
        self.camids, self.cameras = np.unique(
            np.zeros(len(gallery), np.int64) if gallery.camids is None else gallery.camids,
            return_inverse=True,
        )
        """The camera ids of the gallery, and the index of each image's camera id; a single one if
        unknown."""
        self._by_pid = np.argsort(gallery.pids, kind="stable")
        sorted_pids = gallery.pids[self._by_pid]
        self._first = np.searchsorted(sorted_pids, query.pids, side="left")
        self._last = np.searchsorted(sorted_pids, query.pids, side="right")
        self._own = _own_images(query, gallery)

    @property
    def knows_cameras(self) -> bool:
        """Whether camera ids are known; otherwise, a query only ignores its own image."""
        return self._gallery.camids is not None

    @property
    def gallery_pids(self) -> np.ndarray:
        """(gallery,) int64: the identity of each gallery image."""
        return self._gallery.pids

    @property
    def camera_count(self) -> int:
        """Number of cameras in the gallery."""
        return len(self.camids)

    def matches_and_ignored(self, query_index: int) -> tuple[np.ndarray, np.ndarray]:
        """The matches of a query, and the images it ignores besides junk: sorted gallery indices.

        Both are empty for a query that is junk itself.
        """
        if self.query.pids[query_index] == JUNK_PID:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        same_person = self._by_pid[self._first[query_index] : self._last[query_index]]
        if self.query.camids is not None and self._gallery.camids is not None:
            ignored = self._gallery.camids[same_person] == self.query.camids[query_index]
            return same_person[~ignored], same_person[ignored]
        own = self._own.get(query_index)
        if own is None:
            return same_person, np.empty(0, np.int64)
        return same_person[same_person != own], np.array([own])


def _checked_labels(
    *,
    pids: Integers,
    camids: Integers | None,
    ids: Identifiers | None,
    count: int,
    side: str,
) -> ImageLabels:
    """Validated labels of `count` images. `side` names them in errors. Raises MuvaError."""
    return ImageLabels(
        pids=_integers(pids, count, f"{side}_pids"),
        camids=None if camids is None else _integers(camids, count, f"{side}_camids"),
        ids=None if ids is None else _one_per_image(np.asarray(ids), count, f"{side}_ids"),
    )


def checked_rule(
    *,
    query_pids: Integers,
    query_camids: Integers | None,
    gallery_pids: Integers,
    gallery_camids: Integers | None,
    query_ids: Identifiers | None = None,
    gallery_ids: Identifiers | None = None,
    queries: int,
    gallery: int,
) -> CameraRule:
    """The rule for validated labels of both sides, whose numbers of images are given.

    Raises MuvaError if labels do not match the number of images, or each other.
    """
    return CameraRule(
        _checked_labels(
            pids=query_pids, camids=query_camids, ids=query_ids, count=queries, side="query"
        ),
        _checked_labels(
            pids=gallery_pids, camids=gallery_camids, ids=gallery_ids, count=gallery, side="gallery"
        ),
    )


def _own_images(query: ImageLabels, gallery: ImageLabels) -> dict[int, int]:
    """Query index -> gallery index of the same image, if cameras are unknown."""
    if query.camids is not None or query.ids is None or gallery.ids is None:
        return {}
    where = {image_id: index for index, image_id in enumerate(gallery.ids.tolist())}
    if len(where) < len(gallery.ids):
        raise MuvaError(
            f"gallery_ids: {len(gallery.ids) - len(where)} of {len(gallery.ids)} ids are repeated. "
            "Without camera ids, they identify a query's own image and must be unique"
        )
    return {
        index: where[image_id]
        for index, image_id in enumerate(query.ids.tolist())
        if image_id in where
    }


def _integers(values: Integers, count: int, name: str) -> np.ndarray:
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if array.dtype.kind not in "iu" and array.size:
        raise MuvaError(f"{name}: expected integers, found {array.dtype}")
    return _one_per_image(array.astype(np.int64), count, name)


def _one_per_image(array: np.ndarray, count: int, name: str) -> np.ndarray:
    if array.shape != (count,):
        raise MuvaError(
            f"{name}: expected one value for each of the {count} feature rows, "
            f"found shape {tuple(array.shape)}"
        )
    return array
