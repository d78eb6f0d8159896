"""A person is taken out of what is stored, and what still shows them is named.

Shards are written anew without the person; labels, features and metrics of the old ones go, and can
be made again of what is left. Models stay: whoever learned from the person is named, and so are the
runs in MLflow and the reports whose pictures may show them.
"""

from __future__ import annotations

from collections.abc import Collection

from muva.data import formats
from muva.data.artifacts import Artifact, artifact_at, find_artifact
from muva.data.decoded import delete_decoded_images
from muva.data.forgetting import DatasetWithout
from muva.data.shards import open_dataset
from muva.data.store import STALE_PARTIAL_S, delete_local_copies
from workflows.session import Session
from workflows.steps.erasure_report import Traces, traces_of
from workflows.steps.step import Step, run_step


def forget(
    session: Session, reference: str, pids: Collection[int] = (), images: Collection[str] = ()
) -> tuple[Traces, Artifact | None]:
    """Takes people out of one version of a data set; what there was, and the version that is left.

    People and version are those of `traces_of`. None is left where no complete version held them.
    What else the name meant before, it means afterwards. Interrupted, it goes on when it is asked
    again: the old shards are the last to go.
    """
    traces = traces_of(session, reference, pids, images)
    left = None
    goes = [*traces.goes, *traces.unfinished]
    if traces.dataset is not None:
        old = artifact_at(session.store, traces.dataset)
        meant = find_artifact(session.store, "datasets", old.name)
        left = _rewritten(session, old, {person.pid for person in traces.people})
        if meant != old:
            meant.set_latest()
        goes.append(traces.dataset)
    for address in goes:
        artifact_at(session.store, address).delete()
    session.store.sweep(older_than_s=STALE_PARTIAL_S)
    delete_decoded_images()
    delete_local_copies()
    return traces, left


def _rewritten(session: Session, old: Artifact, pids: Collection[int]) -> Artifact:
    """The data set without these people, and a run that uses it: `muva store gc` keeps it."""
    remainder = DatasetWithout(open_dataset(old), pids)
    step = Step(
        label=f"forget in {old.name}",
        artifact=remainder.artifact,
        format_version=formats.SHARDS,
        config=remainder.config,
        inputs={},  # not the old one, of which no trace shall stay
    )
    return run_step(step, session=session, work=lambda _: remainder.write()).artifact
