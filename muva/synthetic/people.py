"""Synthetic data sets: records of a domain's people, split as benchmarks are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from muva.data.records import Record, Split
from muva.errors import MuvaError
from muva.synthetic.domain import find_domain
from muva.synthetic.rendering import render
from muva.synthetic.sensor import encode_jpeg

_QUALITY = 95
"""JPEG quality of the stored files; the camera's own compression is in the pixels already."""


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
    """Render a data set: the first people train, the next ones test.

    Of a test person image 0 of each camera is a query, the others are gallery; `image_id` reads
    like `query/0012_c3_00.jpg`. `progress` is told (images done, images in all).
    """
    if min(train_people, test_people) < 0 or train_people + test_people == 0:
        raise MuvaError(
            f"{domain}: expected people to render, got {train_people} to train on and "
            f"{test_people} to test on"
        )
    if images_per_camera < (2 if test_people else 1):
        raise MuvaError(
            f"{domain}: expected two images per camera or more (one query, one gallery), "
            f"got {images_per_camera}"
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
    """Queries and gallery of these people alone, as in `synthetic_records`."""
    return _records(domain, pids, ("query", "gallery"), images_per_camera, height, width)


def _records(
    domain: str,
    pids: Iterable[int],
    splits: tuple[Split, Split],
    images_per_camera: int,
    height: int,
    width: int,
) -> Iterator[Record]:
    """`splits`: of image 0 of each camera, and of the others."""
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
