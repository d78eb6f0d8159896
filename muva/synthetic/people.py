"""Synthetic data sets: records of a domain's people, with the splits of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from muva.data.records import Record, Split
from muva.errors import MuvaError
from muva.synthetic.domain import find_domain
from muva.synthetic.rendering import render
from muva.synthetic.sensor import encode_jpeg

_QUALITY = 95
"""JPEG quality of the stored files; the camera's own compression is already part of the pixels."""


def synthetic_records(
    domain: str,
    *,
    train_people: int,
    test_people: int,
    images_per_camera: int,
    height: int,
    width: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Record]:
    """Render a data set: the first identities are for training, the following ones for testing.

    For each test identity, image 0 of each camera is a query and the others are gallery. `image_id`
    has the form `query/0012_c3_00.jpg`. `progress` is called with (images done, images in total).
    Raises MuvaError if there are no people, or too few images per camera.
    """
    if min(train_people, test_people) < 0 or train_people + test_people == 0:
        raise MuvaError(
            f"{domain}: expected people to render, found {train_people} for training and "
            f"{test_people} for testing"
        )
    if images_per_camera < (2 if test_people else 1):
        raise MuvaError(
            f"{domain}: expected at least two images per camera (one query, one gallery), "
            f"found {images_per_camera}"
        )
    people = train_people + test_people
    total = people * find_domain(domain).cameras * images_per_camera
    records = chain(
        _records(
            domain, range(1, train_people + 1), ("train", "train"), images_per_camera, height, width
        ),
        test_records(
            domain,
            pids=range(train_people + 1, people + 1),
            images_per_camera=images_per_camera,
            height=height,
            width=width,
        ),
    )
    for done, record in enumerate(records, start=1):
        yield record
        if progress is not None:
            progress(done, total)


def test_records(
    domain: str, *, pids: Iterable[int], images_per_camera: int, height: int, width: int
) -> Iterator[Record]:
    """Queries and gallery of these people only, as in `synthetic_records`."""
    return _records(domain, pids, ("query", "gallery"), images_per_camera, height, width)


def _records(
    domain: str,
    pids: Iterable[int],
    splits: tuple[Split, Split],
    images_per_camera: int,
    height: int,
    width: int,
) -> Iterator[Record]:
    """`splits` are those of image 0 of each camera, and of the others."""
    for pid in pids:
        for camid in range(1, find_domain(domain).cameras + 1):
            for index in range(images_per_camera):
                split = splits[min(index, 1)]
                yield _record(domain, split, pid, camid, index, height=height, width=width)


def _record(
    domain: str, split: Split, pid: int, camid: int, index: int, *, height: int, width: int
) -> Record:
    shot = render(domain, pid=pid, camid=camid, index=index, height=height, width=width)
    return Record(
        domain=domain,
        image_id=f"{split}/{pid:04d}_c{camid}_{index:02d}.jpg",
        split=split,
        pid=pid,
        camid=camid,
        source=encode_jpeg(shot.image, quality=_QUALITY),
        boxes=shot.boxes,
        caption=shot.caption,
    )
