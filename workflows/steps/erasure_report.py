"""What there is of some people of a data set: in the store, in MLflow, among the reports at home.

People are numbered anew by each import of some layouts, so pids hold for one version of a data set,
an address; who has the same number or the same images in other versions is told beside it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from muva.data.artifacts import (
    Artifact,
    DamagedManifestError,
    artifact_at,
    find_artifact,
    list_artifacts,
)
from muva.data.forgetting import DatasetWithout
from muva.data.records import JUNK_PID
from muva.data.shards import Dataset, open_dataset
from muva.errors import MuvaError
from workflows.session import Session
from workflows.steps.step import ARTIFACT_TAG

GOES = ("datasets", "labels", "features", "metrics")
"""Kinds of artifacts that go when they were made from the person's images, each made from those
before it; models stay."""
LEARNED = ("prompts", "models")
_EXAMPLES = 3
_NOT_IN_A_FILE_NAME = r"[^\w.-]"
"""What `muva masks show` replaces in an image's id."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person as one version of a data set knows them."""

    dataset: str
    """Its address."""
    pid: int
    images: int
    examples: tuple[str, ...]
    """A few of the images, by id."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What there is of some people of a data set. Artifacts are told by their addresses."""

    dataset: str | None
    """The version that holds them; None where all that is left of them is unfinished."""
    people: tuple[Person, ...]
    goes: tuple[str, ...]
    """What was made from that version and can be made again; what was made last comes first."""
    unfinished: tuple[str, ...]
    """Of the data set, and never finished or half deleted: it may hold them, and goes too."""
    stays: tuple[str, ...]
    """Prompts and models that were made from that version."""
    begun: tuple[str, ...]
    """Unfinished prompts and models: whom they learn from is not known."""
    searches: tuple[str, ...]
    """Studies and their trials: settings and numbers, which stay."""
    runs: tuple[dict[str, str], ...]
    """Runs in MLflow whose pictures may show them: name, id, experiment."""
    reports: tuple[str, ...]
    """Files in HOME/reports that may show them."""
    others: tuple[Person, ...]
    """In other versions: who has one of the pids, or one of the images."""


def traces_of(
    session: Session, reference: str, pids: Collection[int] = (), images: Collection[str] = ()
) -> Traces:
    """What there is of people of one version of a data set: of these pids, and in these images.

    `reference`: a name, which means the version that was made or meant last, or an address. A
    forgetting that was interrupted is gone on with. MuvaError where there is nothing of them.
    """
    everything = _Store(session)
    name = everything.name_of(reference)
    versions = [open_dataset(one) for one in everything.complete("datasets") if one.name == name]
    leftovers = everything.unfinished_of(name)
    chosen = _chosen(session, reference, versions, leftovers=bool(leftovers))
    if chosen is not None:
        chosen = _before_forgetting(chosen, versions, pids, images)
    found = _pids_in(chosen, pids, images) if chosen is not None else set()
    others = tuple(_elsewhere(versions, chosen, found, pids, images))
    if chosen is not None:
        _check_found(chosen, pids, images, others, leftovers=bool(leftovers))

    holding = chosen if found else None
    remainder = DatasetWithout(holding, found).artifact.address if holding else None
    unfinished = tuple(sorted((a for a in leftovers if a != remainder), key=_made_last_first))
    roots = {a for a in unfinished if _kind(a) == "datasets"}
    roots |= {holding.artifact.address} if holding else set()
    made = everything.made_from(roots)
    searches = {a for a in made if everything.is_search(a)}
    seen = _images_of(holding, found) if holding else []
    return Traces(
        dataset=holding.artifact.address if holding else None,
        people=tuple(_person(holding, pid) for pid in sorted(found)) if holding else (),
        goes=tuple(sorted((a for a in made - searches if _kind(a) in GOES), key=_made_last_first)),
        unfinished=unfinished,
        stays=tuple(sorted(a for a in made if _kind(a) not in GOES)),
        begun=tuple(everything.begun()),
        searches=tuple(sorted(searches)),
        runs=tuple(_runs(session, everything, name, roots | made - searches)),
        reports=tuple(_reports(session, everything, name, made, seen)),
        others=others,
    )


class _Store:
    """Every artifact with its manifest; None for unfinished and damaged ones."""

    def __init__(self, session: Session) -> None:
        self._store = session.store
        self._manifests: dict[str, dict[str, Any] | None] = {}
        for artifact in list_artifacts(session.store, unfinished=True):
            try:
                self._manifests[artifact.address] = artifact.manifest()
            except DamagedManifestError:
                self._manifests[artifact.address] = None

    def complete(self, kind: str) -> list[Artifact]:
        return [
            artifact_at(self._store, a) for a in self._manifests if _kind(a) == kind and a in self
        ]

    def __contains__(self, address: str) -> bool:
        """Whether it is complete."""
        return self._manifests.get(address) is not None

    def name_of(self, reference: str) -> str:
        """The name of a data set that is told by a name or an address."""
        wanted = reference.removeprefix("datasets/")
        if f"datasets/{wanted}" in self._manifests:
            return wanted.rpartition("-")[0]
        return wanted

    def unfinished_of(self, name: str) -> list[str]:
        """What belongs to the data set of this name, by its own name, and is of no use."""
        return [a for a in self._manifests if a not in self and _belongs(a, name)]

    def begun(self) -> list[str]:
        return [a for a in self._manifests if a not in self and _kind(a) in LEARNED]

    def made_from(self, addresses: set[str]) -> set[str]:
        """All that was made from these artifacts, or from what was made from them."""
        inputs = {a: set(m["inputs"].values()) for a, m in self._manifests.items() if m}
        reached, grew = set(addresses), True
        while grew:
            more = {address for address, given in inputs.items() if given & reached} - reached
            reached |= more
            grew = bool(more)
        return reached - addresses

    def is_search(self, address: str) -> bool:
        """Whether it is a study, or a trial of one."""
        manifest = self._manifests[address]
        assert manifest is not None
        return _kind(address) == "metrics" and (
            "study" in manifest["inputs"] or {"space", "aims"} <= manifest["config"].keys()
        )


def _chosen(
    session: Session, reference: str, versions: Sequence[Dataset], *, leftovers: bool
) -> Dataset | None:
    """The version that is meant; None where it is a leftover, as one that is half deleted is."""
    known = [
        (one.artifact.name, one.artifact.address.removeprefix("datasets/")) for one in versions
    ]
    if leftovers and not any(reference.removeprefix("datasets/") in words for words in known):
        return None
    wanted = find_artifact(session.store, "datasets", reference)
    return next(one for one in versions if one.artifact == wanted)


def _before_forgetting(
    meant: Dataset, versions: Sequence[Dataset], pids: Collection[int], images: Collection[str]
) -> Dataset:
    """The version that is meant, or whose remainder it is: then the old one was yet to go."""
    for one in versions:
        found = _pids_in(one, pids, images)
        if found and DatasetWithout(one, found).artifact == meant.artifact:
            return one
    return meant


def _pids_in(dataset: Dataset, pids: Collection[int], images: Collection[str]) -> set[int]:
    """Who of these the data set holds."""
    rows = dataset.rows(["image_id", "pid"]).to_pylist()
    return {row["pid"] for row in rows if row["pid"] in pids or row["image_id"] in images}


def _images_of(dataset: Dataset, pids: Collection[int]) -> list[str]:
    rows = dataset.rows(["image_id", "pid"]).to_pylist()
    return [row["image_id"] for row in rows if row["pid"] in pids]


def _person(dataset: Dataset, pid: int, *, known: Collection[str] = ()) -> Person:
    """`known`: images that are named before others."""
    images = sorted(_images_of(dataset, [pid]), key=lambda one: one not in known)
    return Person(
        dataset=dataset.artifact.address,
        pid=pid,
        images=len(images),
        examples=tuple(images[:_EXAMPLES]),
    )


def _elsewhere(
    versions: Sequence[Dataset],
    chosen: Dataset | None,
    found: Collection[int],
    pids: Collection[int],
    images: Collection[str],
) -> Iterator[Person]:
    known = {*images, *(_images_of(chosen, found) if chosen is not None else ())}
    for one in versions:
        if chosen is None or one.artifact != chosen.artifact:
            for pid in sorted(_pids_in(one, {*pids, *found}, known) - {JUNK_PID}):
                yield _person(one, pid, known=known)


def _check_found(
    dataset: Dataset,
    pids: Collection[int],
    images: Collection[str],
    others: Sequence[Person],
    *,
    leftovers: bool,
) -> None:
    rows = dataset.rows(["image_id", "pid"]).to_pylist()
    pid_of = {row["image_id"]: row["pid"] for row in rows}
    missing = [f"pid {pid}" for pid in sorted(set(pids) - set(pid_of.values()))]
    missing += [f"the image {image}" for image in sorted(set(images) - pid_of.keys())]
    if len(missing) == len(set(pids)) + len(set(images)) and leftovers:
        return  # what is left of an earlier forgetting, or of work that broke off
    if missing:
        there = "".join(f"; {line}" for line in told(others))
        raise MuvaError(
            f"{dataset.artifact.uri}: holds nothing of {', '.join(missing)}: expected pids and "
            "image ids as the import of this version gave them; --image takes a person by the id "
            f"of one of their images, and an address instead of the name another version{there}"
        )
    if junk := [image for image in images if pid_of[image] == JUNK_PID]:
        raise MuvaError(
            f"{dataset.artifact.uri}: the image {junk[0]} is of no known person (pid {JUNK_PID}): "
            f"expected an image of somebody. --pid {JUNK_PID} takes all that are of nobody known"
        )


def told(people: Sequence[Person]) -> list[str]:
    """A line for each."""
    return [
        f"{one.dataset}: pid {one.pid}, {one.images} images, {', '.join(one.examples)}"
        f"{', …' if one.images > len(one.examples) else ''}"
        for one in people
    ]


def _runs(
    session: Session, everything: _Store, name: str, made: Collection[str]
) -> Iterator[dict[str, str]]:
    """Also those of what is deleted or was never finished: its name is all that is known of it."""
    from tracking.runs import has_pictures, runs_with_tag

    for run in runs_with_tag(session.tracking_uri, ARTIFACT_TAG):
        gone = run.value not in everything
        may_show = gone and (_belongs(run.value, name) or _kind(run.value) in LEARNED)
        if (run.value in made or may_show) and has_pictures(run.ref):
            ref = run.ref
            yield {"name": run.name, "run_id": ref.run_id, "experiment_id": ref.experiment_id}


def _reports(
    session: Session,
    everything: _Store,
    name: str,
    made: Collection[str],
    images: Collection[str],
) -> Iterator[str]:
    """Where no image of the person is known any more, the pictures of all."""
    page = re.compile(rf"masks-({re.escape(name)}-[0-9a-f]{{16}})\.html")
    pictures = {f"{name}-{re.sub(_NOT_IN_A_FILE_NAME, '_', image)}.png" for image in images}
    for file in sorted((session.home / "reports").glob("*")):
        if found := page.fullmatch(file.name):
            labels = f"labels/{found[1]}"
            if labels in made or labels not in everything:
                yield str(file)
        elif file.name in pictures or (
            not pictures and file.suffix == ".png" and file.name.startswith(f"{name}-")
        ):
            yield str(file)


def _belongs(address: str, name: str) -> bool:
    """Whether an artifact's own name says that it is of the data set."""
    kind, _, folder = address.partition("/")
    own = folder.rpartition("-")[0]
    return (
        (kind in ("datasets", "labels") and own == name)
        or (kind == "features" and own.startswith(f"{name}-by-"))
        or (kind == "metrics" and own.endswith(f"-on-{name}"))
    )


def _made_last_first(address: str) -> tuple[int, str]:
    """An order: without what it was made from, nothing would tell whom an artifact is of."""
    return -GOES.index(_kind(address)), address


def _kind(address: str) -> str:
    return address.partition("/")[0]
