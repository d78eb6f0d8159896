"""Synthetic data sets: records of a domain's people, with the splits of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from muva.data.records import Record, Split
from muva.errors import MuvaError
from muva.synthetic.domain import find_domain
from muva.synthetic.rendering import render
from muva.synthetic.sensor import encode_jpeg
from muva.synthetic.world import networks_of

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
    network: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Record]:
    """Render a data set: the first identities are for training, the following ones for testing.

    For each test identity, image 0 of each camera is a query and the others are gallery. `image_id`
    has the form `query/0012_c3_00.jpg`. With `network`, one of `networks_in(domain)`, only its
    share of the data set is rendered. `progress` is called with (images done, images in total).
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
    people = [
        person
        for person in _people(domain, train_people + test_people)
        if network in (None, person.network)
    ]
    total = _images_of(people, images_per_camera)
    training = [person for person in people if person.pid <= train_people]
    testing = people[len(training) :]
    records = chain(
        _records(domain, training, ("train", "train"), images_per_camera, height, width),
        _records(domain, testing, ("query", "gallery"), images_per_camera, height, width),
    )
    for done, record in enumerate(records, start=1):
        yield record
        if progress is not None:
            progress(done, total)


def networks_in(domain: str) -> tuple[str, ...]:
    """The camera networks of a data set: several in one of the open world, otherwise itself."""
    return networks_of(domain) or (domain,)


def image_count(domain: str, *, train_people: int, test_people: int, images_per_camera: int) -> int:
    """How many images a data set has."""
    return _images_of(_people(domain, train_people + test_people), images_per_camera)


def test_records(
    domain: str, *, pids: Iterable[int], images_per_camera: int, height: int, width: int
) -> Iterator[Record]:
    """Queries and gallery of these people only, as in `synthetic_records`."""
    people = (_Person(network=domain, number=pid, pid=pid, camids_from=1) for pid in pids)
    return _records(domain, people, ("query", "gallery"), images_per_camera, height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Person:
    """A person of a data set, which may have the people of several networks."""

    network: str
    number: int
    """The pid within the network."""
    pid: int
    camids_from: int
    """The camid, in the data set, of the network's first camera."""


def _people(domain: str, count: int) -> Iterator[_Person]:
    """The people of a data set; those of the open world are shared out among its networks."""
    networks = networks_in(domain)
    pid, camids_from = 1, 1
    for number, network in enumerate(networks, start=1):
        last = count * number // len(networks)
        for own in range(1, last - pid + 2):
            yield _Person(network=network, number=own, pid=pid, camids_from=camids_from)
            pid += 1
        camids_from += find_domain(network).cameras


def _images_of(people: Iterable[_Person], images_per_camera: int) -> int:
    return sum(find_domain(person.network).cameras for person in people) * images_per_camera


def _records(
    domain: str,
    people: Iterable[_Person],
    splits: tuple[Split, Split],
    images_per_camera: int,
    height: int,
    width: int,
) -> Iterator[Record]:
    """`splits` are those of image 0 of each camera, and of the others."""
    for person in people:
        for camera in range(1, find_domain(person.network).cameras + 1):
            for index in range(images_per_camera):
                split = splits[min(index, 1)]
                yield _record(domain, split, person, camera, index, height=height, width=width)


def _record(
    domain: str, split: Split, person: _Person, camera: int, index: int, *, height: int, width: int
) -> Record:
    shot = render(
        person.network, pid=person.number, camid=camera, index=index, height=height, width=width
    )
    camid = person.camids_from + camera - 1
    return Record(
        domain=domain,
        image_id=f"{split}/{person.pid:04d}_c{camid}_{index:02d}.jpg",
        split=split,
        pid=person.pid,
        camid=camid,
        source=encode_jpeg(shot.image, quality=_QUALITY),
        boxes=shot.boxes,
        caption=shot.caption,
    )
