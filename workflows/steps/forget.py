"""Removing people from what is stored, and reporting what may still show them.

Shards are rewritten without the people, and galleries in the store lose them. Pseudo-labels,
features and metrics of the old shards are deleted, and can be made again from the new ones. Models
are kept: those that were trained on the people are reported, and so are runs in MLflow and local
reports whose pictures may show them.
"""

from __future__ import annotations

from collections.abc import Collection

from muva.data import formats
from muva.data.artifacts import Artifact, artifact_at, find_artifact
from muva.data.decoded import delete_decoded_images
from muva.data.forgetting import DatasetWithout
from muva.data.shards import Dataset, open_dataset
from muva.data.store import STALE_PARTIAL_S, delete_local_copies
from workflows.session import Session
from workflows.steps.erasure_report import ErasureReport, erasure_report, images_of
from workflows.steps.galleries import forget_in_galleries
from workflows.steps.step import Step, run_step


def forget(
    session: Session, reference: str, pids: Collection[int] = (), images: Collection[str] = ()
) -> tuple[ErasureReport, Artifact | None]:
    """Remove people from one version of a data set; the report, and the version that remains.

    The arguments are those of `erasure_report`. No version remains if no complete version held the
    people. A name refers to the same version as before. Calling it again resumes an interrupted
    removal, because the old shards are deleted last.
    """
    report = what_to_forget(session, reference, pids, images)
    remaining = None
    deleted = [*report.deleted, *report.unfinished]
    if report.dataset is not None:
        old = artifact_at(session.store, report.dataset)
        latest = find_artifact(session.store, "datasets", old.name)
        removed = {person.pid for person in report.people}
        step = without_step(session, open_dataset(old), removed)
        without = DatasetWithout(open_dataset(old), removed)
        forget_in_galleries(
            session,
            old.name,
            version=old.uri,
            pids=removed,
            images=images_of(open_dataset(old), removed),
        )
        result = run_step(step, session=session, work=lambda _: without.write(step.artifact))
        remaining = result.artifact
        if latest != old:
            latest.set_latest()
        deleted.append(report.dataset)
    for address in deleted:
        artifact_at(session.store, address).delete()
    session.store.sweep(older_than_s=STALE_PARTIAL_S)
    delete_decoded_images()
    delete_local_copies()
    return report, remaining


def what_to_forget(
    session: Session, reference: str, pids: Collection[int] = (), images: Collection[str] = ()
) -> ErasureReport:
    """The report of a removal, without doing it."""

    def without(dataset: Dataset, removed: Collection[int]) -> Artifact:
        return without_step(session, dataset, removed).artifact

    return erasure_report(session, reference, pids, images, without=without)


def without_step(session: Session, dataset: Dataset, pids: Collection[int]) -> Step:
    """Declare a data set without some people.

    The old data set is not among its inputs, so that no trace of it remains.
    """
    return Step(
        title=f"forget in {dataset.artifact.name}",
        store=session.store,
        kind="datasets",
        name=dataset.artifact.name,
        format_version=formats.SHARDS,
        settings=DatasetWithout(dataset, pids).settings,
    )
