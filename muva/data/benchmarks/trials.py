"""Random splits of small data sets: ten random halves of the identities, the same for all users.

VIPeR, PRID-2011 and i-LIDS have no official list of such splits. Every code base draws its own
(torchreid and MetaBIN when they first read a tree, DualNorm and BCaR from a seed), so only averages
are comparable, not individual splits. Ours are drawn by hashing: identities are sorted by the
SHA-256 of `NAME/TRIAL/PERSON`, such as `viper/3/17`, and the first half is the test set. The result
does not depend on the order of files, the platform, or the version of a random generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import TypeVar

from muva.data.benchmarks.benchmark import Trial
from muva.data.records import Record

TRIALS = 10

_Value = TypeVar("_Value", int, str)


def random_halves(records: Sequence[Record], *, name: str) -> list[Trial]:
    """Test half of the query identities; remove the others from queries and gallery."""
    query_pids = {record.pid for record in records if record.split == "query"}
    tested_pids = [_half(query_pids, seed=f"{name}/{trial}") for trial in range(TRIALS)]
    return [trial_without(query_pids - half, records) for half in tested_pids]


def random_pairs(records: Sequence[Record], *, name: str) -> list[Trial]:
    """For half of the identities, one random image is the query and another one the gallery.

    Identities with a single image are in no trial.
    """
    images: dict[int, list[str]] = {}
    for record in records:
        images.setdefault(record.pid, []).append(record.image_id)
    people = {pid for pid, image_ids in images.items() if len(image_ids) > 1}
    trials = []
    for trial in range(TRIALS):
        half = sorted(_half(people, seed=f"{name}/{trial}"))
        drawn = [_shuffled(images[pid], seed=f"{name}/{trial}/{pid}") for pid in half]
        query = tuple(image_ids[0] for image_ids in drawn)
        gallery = tuple(image_ids[1] for image_ids in drawn)
        trials.append(Trial(query=query, gallery=gallery))
    return trials


def single_shot(records: Sequence[Record], *, name: str) -> list[Trial]:
    """All queries, and a gallery with one random image of each of its identities."""
    gallery: dict[int, list[str]] = {}
    for record in records:
        if record.split == "gallery":
            gallery.setdefault(record.pid, []).append(record.image_id)
    query = _ids(record for record in records if record.split == "query")
    return [
        Trial(
            query=query,
            gallery=tuple(
                _shuffled(gallery[pid], seed=f"{name}/{trial}/{pid}")[0] for pid in sorted(gallery)
            ),
        )
        for trial in range(TRIALS)
    ]


def trial_without(people: Collection[int], records: Sequence[Record]) -> Trial:
    """All queries and the whole gallery except for these people."""
    kept = [record for record in records if record.pid not in people]
    return Trial(
        query=_ids(record for record in kept if record.split == "query"),
        gallery=_ids(record for record in kept if record.split == "gallery"),
    )


def _half(people: set[int], *, seed: str) -> set[int]:
    """The larger half if their number is odd: 60 of the 119 of i-LIDS, as in other code bases."""
    return set(_shuffled(people, seed=seed)[: (len(people) + 1) // 2])


def _shuffled(values: Iterable[_Value], *, seed: str) -> list[_Value]:
    return sorted(values, key=lambda value: hashlib.sha256(f"{seed}/{value}".encode()).digest())


def _ids(records: Iterable[Record]) -> tuple[str, ...]:
    return tuple(sorted(record.image_id for record in records))
