"""`muva data forget`: a person is taken out of what is stored, and told is what still shows them.

Shards are written anew without the person; labels, features and metrics of the old ones go, and can
be made again of what is left. Models stay: whoever learned from the person is named, and so are the
runs in MLflow and the reports whose pictures may show them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict

import click

from muva.data.artifacts import Artifact, artifact_at, find_artifact
from muva.data.decoded import forget_decoded_images
from muva.data.forgetting import Remainder
from muva.data.shards import SHARD_FORMAT, open_dataset
from muva.data.store import forget_local_copies
from workflows.session import Session, json_option, print_result, session_options
from workflows.steps import Step, do_step
from workflows.store import PARTIAL_AFTER_S
from workflows.traces import Traces, told, traces_of


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
            meant.be_meant()
        goes.append(traces.dataset)
    for address in goes:
        artifact_at(session.store, address).delete()
    session.store.sweep(older_than_s=PARTIAL_AFTER_S)
    forget_decoded_images()
    forget_local_copies()
    return traces, left


def _rewritten(session: Session, old: Artifact, pids: Collection[int]) -> Artifact:
    """The data set without these people, and a run that uses it: `muva store gc` keeps it."""
    remainder = Remainder(open_dataset(old), pids)
    step = Step(
        label=f"forget in {old.name}",
        artifact=remainder.artifact,
        format_version=SHARD_FORMAT,
        config=remainder.config,
        inputs={},  # not the old one, of which no trace shall stay
    )
    return do_step(step, session=session, work=lambda _: remainder.write()).artifact


@click.command("forget")
@click.argument("name")
@click.option("--pid", "pids", type=int, multiple=True, help="Of the person; may be repeated.")
@click.option("--image", "images", multiple=True, help="Id of an image of them; may be repeated.")
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would go.")
@json_option
@session_options
def forget_verb(
    name: str,
    pids: tuple[int, ...],
    images: tuple[str, ...],
    yes: bool,
    as_json: bool,
    session: Session,
) -> None:
    """Take a person out of the data set NAME, and out of labels, features and metrics.

    Of one version, the one that NAME means, or an address: pids may differ in others, which are
    named. Unfinished artifacts of NAME go too: let nothing run on this store meanwhile. Models that
    learned from the person stay, and pictures in MLflow and HOME/reports: these are named. Copies
    that other machines have in their caches are theirs to delete.

    \b
    muva data forget mine --pid 17          who that is, and what would go
    muva data forget mine --image 0017_c2_3.jpg --yes
    """
    if not pids and not images:
        raise click.UsageError("whom? Expected --pid PID or --image IMAGE_ID")
    if yes:
        traces, left = forget(session, name, pids, images)
    else:
        traces, left = traces_of(session, name, pids, images), None
    result = {"forgotten": yes, **asdict(traces), "left": left.uri if left else None}
    print_result(result, as_json=as_json, text=_text(traces, left, yes=yes))


def _text(traces: Traces, left: Artifact | None, *, yes: bool) -> str:
    verb = "Deleted" if yes else "Would go"
    lists = {
        f"{verb}, to be made again where it is wanted:": traces.goes,
        f"{verb}, unfinished, so that it may hold them:": traces.unfinished,
        "Learned from them, and stays (delete or train again):": traces.stays,
        "Unfinished, and may have learned from them (delete or train again):": traces.begun,
        "Searches stay, hours of work that hold settings and numbers alone:": traces.searches,
        "Runs in MLflow whose pictures may show them (`mlflow runs delete --run-id ID`, then "
        "`mlflow gc`):": [f"{run['run_id']}  {run['name']}" for run in traces.runs],
        "Reports that may show them (delete these files):": traces.reports,
        "Other versions, where a pid may be another's (the address instead of the name takes them "
        "out there):": told(traces.others),
    }
    lines = told(traces.people) or ["No finished version that is meant holds an image of them."]
    for title, entries in lists.items():
        lines += [title, *(f"  {entry}" for entry in entries)] if entries else []
    lines += [f"Left: {left.address}"] if left else []
    return "\n".join([*lines, "" if yes else "--yes does it."]).rstrip()
