"""`muva store`: lists artifacts and the runs that use them, and deletes unused ones.

Runs in MLflow name the artifacts that they made or used. An artifact is unused if no run names it
and none of the named ones was made from it. To free space, delete runs in the MLflow UI, then run
`muva store gc`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal
from rich.table import Table

from muva.data.artifacts import (
    KINDS,
    Artifact,
    DamagedManifestError,
    list_artifacts,
)
from muva.data.lineage import Lineage
from muva.data.store import STALE_PARTIAL_S
from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.progress import say
from workflows.steps.step import check_idle
from workflows.verb import as_text, json_option, print_result, session_options

if TYPE_CHECKING:
    from workflows.session import Session


@click.group("store")
def store_verb() -> None:
    """List artifacts and delete unused ones.

    \b
    muva store list --kind models
    muva store gc --yes
    """


@store_verb.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only artifacts of this kind.")
@json_option
@session_options
def list_verb(kind: str | None, as_json: bool, session: Session) -> None:
    """List artifacts with their size and the runs that use them.

    \b
    muva store list --kind models
    """
    users = _users(session)
    rows = [
        _describe(artifact, users.get(artifact.address, []))
        for artifact in list_artifacts(session.store, kind, unfinished=True)
    ]
    table = Table("artifact", "size", "made", "runs", title=session.store.uri)
    for row in rows:
        table.add_row(
            row["address"],
            decimal(row["bytes"]),
            row["made"],
            ", ".join(row["runs"]) or "none",
        )
    print_result(rows, as_json=as_json, text=as_text(table))


@store_verb.command()
@click.option("--yes", is_flag=True, help="Delete. Without it, only list what would be deleted.")
@click.option(
    "--all", "allow_all", is_flag=True, help="Proceed even if no run uses anything in the store."
)
@json_option
@session_options
def gc(yes: bool, allow_all: bool, as_json: bool, session: Session) -> None:
    """Delete artifacts that no run uses.

    A run uses its artifacts until it is deleted in MLflow. Unfinished and damaged artifacts and the
    remains of interrupted writes are deleted too, so nothing else may run on this store meanwhile:
    commands in the same home are noticed, others are not.

    \b
    muva store gc          list what would be deleted
    muva store gc --yes
    """
    if yes:
        check_idle(session)
    users = _users(session)
    artifacts = list_artifacts(session.store)
    if artifacts and not allow_all and not any(one.address in users for one in artifacts):
        raise MuvaError(
            f"No run at {redact(str(session.tracking_uri))} uses anything in the store "
            f"{session.store.uri}. Expected the runs that made its artifacts: say where they are "
            "with --home or --tracking-uri, or give --all if everything may be deleted"
        )
    unused = Lineage.of(session.store).unused(keep=users.keys())
    rows = [_describe(artifact, []) for artifact in unused]
    if yes:
        for artifact in unused:
            artifact.delete()
            say(f"deleted {artifact.address}")
        session.store.sweep(older_than_s=STALE_PARTIAL_S)
    freed = decimal(sum(row["bytes"] for row in rows))
    lines = [f"{row['address']}  {decimal(row['bytes'])}" for row in rows]
    total = (
        f"Deleted {len(rows)} artifacts, {freed}."
        if yes
        else f"{len(rows)} artifacts, {freed}, can be deleted; --yes deletes them."
    )
    print_result(
        {"deleted": yes, "artifacts": rows}, as_json=as_json, text="\n".join([*lines, total])
    )


def _users(session: Session) -> dict[str, list[str]]:
    from tracking.names import ARTIFACT_TAG
    from tracking.tagged_runs import runs_with_tag

    users: dict[str, list[str]] = defaultdict(list)
    for run in runs_with_tag(session.tracking_uri, ARTIFACT_TAG):
        users[run.value].append(run.name)
    return users


def _describe(artifact: Artifact, runs: list[str]) -> dict[str, Any]:
    try:
        created = (artifact.manifest() or {}).get("created")
        made = created[:16].replace("T", " ") if created else "unfinished"
    except DamagedManifestError:
        created, made = None, "damaged"
    return {
        "address": artifact.address,
        "bytes": artifact.size_bytes(),
        "created": created,
        "made": made,
        "runs": sorted(set(runs)),
    }
