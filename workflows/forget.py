"""`muva data forget`: a person is taken out of what is stored, and told is what still shows them.

Shards are written anew without the person; labels, features and metrics of the old ones go, and can
be made again of what is left. Models stay: whoever learned from the person is named, and so are the
runs in MLflow whose pictures may show them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

import click
import numpy as np

from muva.data.artifacts import Artifact, DamagedManifestError, list_artifacts
from muva.data.decoded import forget_decoded_images
from muva.data.forgetting import without_people
from muva.data.shards import Dataset, open_dataset
from muva.data.store import forget_local_copies
from muva.errors import MuvaError
from workflows.session import Session, json_option, print_result, session_options
from workflows.steps import ARTIFACT_TAG

GOES = ("datasets", "labels", "features", "metrics")
"""Kinds of artifacts that go when they were made from the person's images; models stay."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What there is of some people of a data set."""

    datasets: tuple[str, ...]
    """Addresses of the data sets of that name that hold images of them."""
    images: int
    goes: tuple[str, ...]
    """Addresses of all that was made from those and can be made again."""
    stays: tuple[str, ...]
    """Prompts and models that were made from those."""
    runs: tuple[dict[str, str], ...]
    """Runs in MLflow whose pictures may show them: name, id, experiment."""


def traces_of(session: Session, name: str, pids: Collection[int]) -> Traces:
    """What there is of these people of the data set; MuvaError where there is nothing."""
    holding: dict[str, int] = {}
    for artifact in list_artifacts(session.store, "datasets"):
        if artifact.name == name and (count := _images_of(open_dataset(artifact), pids)):
            holding[artifact.address] = count
    if not holding:
        raise MuvaError(
            f"{name}: the store {session.store.uri} holds no image of "
            f"{', '.join(map(str, sorted(pids)))} in a data set of that name: expected pids as "
            f"`muva data show {name}` counts them, and a name that `muva data list` shows"
        )
    made = _made_from(session, set(holding))
    kinds = {address: address.partition("/")[0] for address in made}
    return Traces(
        datasets=tuple(sorted(holding)),
        images=sum(holding.values()),
        goes=tuple(sorted(a for a in made if kinds[a] in GOES and a not in holding)),
        stays=tuple(sorted(a for a in made if kinds[a] not in GOES)),
        runs=tuple(_runs_with_pictures(session, made | set(holding))),
    )


def forget(session: Session, name: str, pids: Collection[int]) -> tuple[Traces, list[Artifact]]:
    """Takes the people out of the store; what there was of them, and the data sets that are left.

    Interrupted, it goes on when it is asked again: the old shards are the last to go.
    """
    traces = traces_of(session, name, pids)
    by_address = {artifact.address: artifact for artifact in list_artifacts(session.store)}
    left = [without_people(open_dataset(by_address[one]), pids) for one in traces.datasets]
    for address in (*traces.goes, *traces.datasets):
        if address in by_address:
            by_address[address].delete()
    left[-1].be_meant()
    forget_decoded_images()
    forget_local_copies()
    return traces, left


def _images_of(dataset: Dataset, pids: Collection[int]) -> int:
    return int(np.isin(dataset.rows(["pid"])["pid"].to_numpy(), list(pids)).sum())


def _made_from(session: Session, addresses: set[str]) -> set[str]:
    """All that was made from these artifacts, or from what was made from them."""
    inputs: dict[str, set[str]] = {}
    for artifact in list_artifacts(session.store):
        try:
            manifest = artifact.manifest()
        except DamagedManifestError:
            continue
        inputs[artifact.address] = set((manifest or {"inputs": {}})["inputs"].values())
    reached, grew = set(addresses), True
    while grew:
        more = {address for address, given in inputs.items() if given & reached} - reached
        reached |= more
        grew = bool(more)
    return reached - addresses


def _runs_with_pictures(session: Session, addresses: Collection[str]) -> list[dict[str, str]]:
    from tracking.runs import has_pictures, runs_with_tag

    return [
        {"name": run.name, "run_id": run.ref.run_id, "experiment_id": run.ref.experiment_id}
        for run in runs_with_tag(session.tracking_uri, ARTIFACT_TAG)
        if run.value in addresses and has_pictures(run.ref)
    ]


@click.command("forget")
@click.argument("name")
@click.option("--pid", "pids", type=int, multiple=True, required=True, help="May be repeated.")
@click.option("--yes", is_flag=True, help="Do it; without it, only say what would go.")
@json_option
@session_options
def forget_verb(
    name: str, pids: tuple[int, ...], yes: bool, as_json: bool, session: Session
) -> None:
    """Take a person out of the data set NAME, and out of labels, features and metrics.

    Models that learned from the person stay, and pictures in MLflow: both are named. Copies that
    other machines have in their caches are theirs to delete.

    \b
    muva data forget mine --pid 17          what would go
    muva data forget mine --pid 17 --yes
    """
    if yes:
        traces, left = forget(session, name, pids)
    else:
        traces, left = traces_of(session, name, pids), []
    told = {"forgotten": yes, **asdict(traces), "left": [artifact.uri for artifact in left]}
    print_result(told, as_json=as_json, text=_text(traces, left, yes=yes))


def _text(traces: Traces, left: list[Artifact], *, yes: bool) -> str:
    lines = [f"{traces.images} images in {', '.join(traces.datasets)}"]
    if traces.goes:
        verb = "Deleted" if yes else "Would go"
        lines += [f"{verb}, to be made again where it is wanted:"]
        lines += [f"  {address}" for address in traces.goes]
    if traces.stays:
        lines += ["Learned from them, and stays (delete or train again):"]
        lines += [f"  {address}" for address in traces.stays]
    if traces.runs:
        lines += ["Runs in MLflow whose pictures may show them (`mlflow runs delete --run-id ID`, "]
        lines[-1] += "then `mlflow gc`):"
        lines += [f"  {run['run_id']}  {run['name']}" for run in traces.runs]
    lines += [f"Left: {artifact.address}" for artifact in left]
    return "\n".join([*lines, "" if yes else "--yes does it."]).rstrip()
