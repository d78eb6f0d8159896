"""What is stored of some people of a data set: in the store, in MLflow and in local reports.

Some layouts number people anew at each import, so that pids are valid for one version of a data
set, which is an address. People in other versions with the same pids or images are reported too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from muva.data.artifacts import Artifact, artifact_at, find_artifact
from muva.data.lineage import Lineage, Node
from muva.data.records import JUNK_PID
from muva.data.shards import Dataset, open_dataset
from muva.errors import MuvaError
from tracking.names import ARTIFACT_TAG, DATASETS_TAG
from workflows.session import Session
from workflows.steps.galleries import InGallery, in_galleries

DELETED = ("datasets", "labels", "features", "metrics")
"""Kinds of artifacts that are deleted if they were made from a person's images, each kind made from
the kinds before it; models are kept."""
LEARNED = ("prompts", "models")
SEARCHES = ("studies", "trials")
_EXAMPLES = 3
_NOT_IN_A_FILE_NAME = r"[^\w.-]"
"""Characters of image ids that `muva masks show` replaces."""

Without = Callable[[Dataset, Collection[int]], Artifact]
"""The artifact of a data set without some pids."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """A person in one version of a data set."""

    dataset: str
    """The address of that version."""
    pid: int
    images: int
    examples: tuple[str, ...]
    """The ids of a few of their images."""


@dataclass(frozen=True, kw_only=True)
class ErasureReport:
    """What is stored of some people of a data set. Artifacts are given by their addresses."""

    dataset: str | None
    """The version that holds them; None if all that remains of them is unfinished."""
    people: tuple[Person, ...]
    deleted: tuple[str, ...]
    """What was made from that version and can be made again, latest first."""
    unfinished: tuple[str, ...]
    """Unfinished or partly deleted artifacts of the data set, which may hold the people and are
    deleted too."""
    kept: tuple[str, ...]
    """Prompts and models that were trained on that version."""
    incomplete: tuple[str, ...]
    """Unfinished prompts and models, which may have been trained on it."""
    searches: tuple[str, ...]
    """Studies and their trials, which are kept: they hold only settings and metrics."""
    runs: tuple[dict[str, str], ...]
    """Runs in MLflow whose pictures may show them: name, id, experiment."""
    reports: tuple[str, ...]
    """Files in HOME/reports that may show them."""
    galleries: tuple[InGallery, ...]
    """Galleries in the store with images of them, which are deleted from these."""
    others: tuple[Person, ...]
    """In other versions: people with one of the pids, or in one of the images."""


def erasure_report(
    session: Session,
    reference: str,
    pids: Collection[int] = (),
    images: Collection[str] = (),
    *,
    without: Without,
) -> ErasureReport:
    """What is stored of people in one version of a data set: with these pids, or in these images.

    `reference`: an address, or a name, which refers to the version that was made or imported last.
    `without` finds the remainder of an interrupted removal, which is then resumed. Raises MuvaError
    if nothing is stored of the people.
    """
    lineage = Lineage.of(session.store)
    name = _name_of(lineage, reference)
    versions = [open_dataset(node.artifact) for node in lineage.complete("datasets")
                if node.artifact.name == name]  # fmt: skip
    leftovers = [
        node.artifact.address for node in lineage.nodes() if _is_leftover(lineage, node, name)
    ]
    chosen = _chosen(session, reference, versions, leftovers=bool(leftovers))
    if chosen is not None:
        chosen = _before_removal(chosen, versions, pids, images, without)
    found = _pids_in(chosen, pids, images) if chosen is not None else set()
    others = tuple(_elsewhere(versions, chosen, found, pids, images))
    if chosen is not None:
        _check_found(chosen, pids, images, others, leftovers=bool(leftovers))

    holding = chosen if found else None
    remainder = without(holding, found).address if holding else None
    kind_of = {node.artifact.address: node.artifact.kind for node in lineage.nodes()}
    unfinished = [address for address in leftovers if address != remainder]
    roots = {address for address in unfinished if kind_of[address] == "datasets"}
    roots |= {holding.artifact.address} if holding else set()
    made = {address for address in lineage.made_from(roots) if address in lineage}
    searches = {address for address in made if kind_of[address] in SEARCHES}

    def made_last_first(address: str) -> tuple[int, str]:
        """Without what an artifact was made from, nothing would say whom it shows."""
        return -DELETED.index(kind_of[address]), address

    deleted = {address for address in made if kind_of[address] in DELETED}
    shown = images_of(holding, found) if holding else []
    return ErasureReport(
        dataset=holding.artifact.address if holding else None,
        people=tuple(_person(holding, pid) for pid in sorted(found)) if holding else (),
        deleted=tuple(sorted(deleted, key=made_last_first)),
        unfinished=tuple(sorted(unfinished, key=made_last_first)),
        kept=tuple(sorted(address for address in made if kind_of[address] in LEARNED)),
        incomplete=tuple(_incomplete(lineage, name)),
        searches=tuple(sorted(searches)),
        runs=tuple(_runs(session, lineage, name, roots | made - searches)),
        reports=tuple(_reports(session, lineage, name, made, shown)),
        galleries=tuple(_galleries(session, name, holding, found, shown)),
        others=others,
    )


def _galleries(
    session: Session,
    name: str,
    holding: Dataset | None,
    pids: Collection[int],
    images: Collection[str],
) -> list[InGallery]:
    if holding is None:
        return []
    return in_galleries(session, name, version=holding.artifact.uri, pids=pids, images=images)


def _name_of(lineage: Lineage, reference: str) -> str:
    """The name of a data set, from its name or an address."""
    wanted = reference.removeprefix("datasets/")
    for node in lineage.nodes("datasets"):
        if node.artifact.address == f"datasets/{wanted}":
            return node.artifact.name
    return wanted


def _datasets_of(lineage: Lineage, node: Node) -> list[str] | None:
    """The names of the data sets that an artifact was made from; None if unknown."""
    if node.artifact.kind in ("datasets", "labels"):  # they have the name of their data set
        return [node.artifact.name]
    if "datasets" in node.facts:
        return node.facts["datasets"]
    # Artifacts of earlier versions have inputs, but not this fact.
    known = lineage.datasets_of(node.artifact.address)
    return [artifact_at(node.artifact.store, address).name for address in known] or None


def _is_leftover(lineage: Lineage, node: Node, name: str) -> bool:
    """Whether this is an unfinished artifact of this data set, of a kind that is deleted."""
    if node.complete or node.artifact.kind not in DELETED:
        return False
    return name in (_datasets_of(lineage, node) or ())


def _incomplete(lineage: Lineage, name: str) -> Iterator[str]:
    """Unfinished trainings on this data set or on unknown data sets."""
    for node in lineage.nodes():
        if not node.complete and node.artifact.kind in LEARNED:
            datasets = _datasets_of(lineage, node)
            if datasets is None or name in datasets:
                yield node.artifact.address


def _chosen(
    session: Session, reference: str, versions: Sequence[Dataset], *, leftovers: bool
) -> Dataset | None:
    """The version that is referred to; None for leftovers, such as a partly deleted version."""
    known = [
        (one.artifact.name, one.artifact.address.removeprefix("datasets/")) for one in versions
    ]
    if leftovers and not any(reference.removeprefix("datasets/") in words for words in known):
        return None
    wanted = find_artifact(session.store, "datasets", reference)
    return next(one for one in versions if one.artifact == wanted)


def _before_removal(
    latest: Dataset,
    versions: Sequence[Dataset],
    pids: Collection[int],
    images: Collection[str],
    without: Without,
) -> Dataset:
    """The version that is referred to, or its original if that has yet to be deleted."""
    for one in versions:
        found = _pids_in(one, pids, images)
        if found and without(one, found) == latest.artifact:
            return one
    return latest


def _pids_in(dataset: Dataset, pids: Collection[int], images: Collection[str]) -> set[int]:
    """Which of these people the data set holds."""
    rows = dataset.rows(["image_id", "pid"]).to_pylist()
    return {row["pid"] for row in rows if row["pid"] in pids or row["image_id"] in images}


def images_of(dataset: Dataset, pids: Collection[int]) -> list[str]:
    """The ids of the images of these people."""
    rows = dataset.rows(["image_id", "pid"]).to_pylist()
    return [row["image_id"] for row in rows if row["pid"] in pids]


def _person(dataset: Dataset, pid: int, *, known: Collection[str] = ()) -> Person:
    """`known`: images that are preferred as examples."""
    images = sorted(images_of(dataset, [pid]), key=lambda one: one not in known)
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
    known = {*images, *(images_of(chosen, found) if chosen is not None else ())}
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
        return  # left over from an earlier removal or interrupted work
    if missing:
        elsewhere = "".join(f"; {line}" for line in described(others))
        raise MuvaError(
            f"{dataset.artifact.uri}: contains nothing of {', '.join(missing)}. Expected pids and "
            "image ids as the import of this version gave them; --image selects a person by the id "
            f"of one of their images, and an address instead of the name selects another version"
            f"{elsewhere}"
        )
    if junk := [image for image in images if pid_of[image] == JUNK_PID]:
        raise MuvaError(
            f"{dataset.artifact.uri}: the image {junk[0]} shows no known person (pid {JUNK_PID}). "
            f"Expected an image of a known person; --pid {JUNK_PID} selects all images of unknown "
            "ones"
        )


def described(people: Sequence[Person]) -> list[str]:
    """One line per person."""
    return [
        f"{one.dataset}: pid {one.pid}, {one.images} images, {', '.join(one.examples)}"
        f"{', …' if one.images > len(one.examples) else ''}"
        for one in people
    ]


def _runs(
    session: Session, lineage: Lineage, name: str, made: Collection[str]
) -> Iterator[dict[str, str]]:
    """Runs whose pictures may show the people, including those of deleted or unfinished artifacts.

    The data sets of those are in a tag. A run of a deleted artifact without it may show anybody.
    """
    from tracking.runs import has_pictures, runs_with_tag

    for run in runs_with_tag(session.tracking_uri, ARTIFACT_TAG):
        gone = run.value not in lineage
        datasets = run.tags.get(DATASETS_TAG)
        may_show = gone and (datasets is None or name in datasets.split(","))
        if (run.value in made or may_show) and has_pictures(run.ref):
            ref = run.ref
            yield {"name": run.name, "run_id": ref.run_id, "experiment_id": ref.experiment_id}


def _reports(
    session: Session,
    lineage: Lineage,
    name: str,
    made: Collection[str],
    images: Collection[str],
) -> Iterator[str]:
    """The files, found by the names that the verbs give them.

    If no image of a person is known any more, the pictures of all people are listed.
    """
    pages = {
        f"masks-{node.artifact.name}-{node.artifact.fingerprint}.html": node.artifact.address
        for node in lineage.complete("labels")
    }
    pictures = {f"{name}-{re.sub(_NOT_IN_A_FILE_NAME, '_', image)}.png" for image in images}
    for file in sorted((session.home / "reports").glob("*")):
        of_gone_labels = file.name not in pages and file.match(f"masks-{name}-*.html")
        if (
            pages.get(file.name) in made
            or of_gone_labels
            or file.name in pictures
            or (not pictures and file.suffix == ".png" and file.name.startswith(f"{name}-"))
        ):
            yield str(file)
