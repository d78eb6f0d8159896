"""All checks of `muva doctor`: of this machine, or of a cluster by a job there."""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from muva.config import ExperimentConfig
from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.jobs.client import (
    answering,
    job_details,
    jobs_client,
    token_header,
)
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.head import answer, find_head
from workflows.jobs.readiness import (
    Check,
    agreement,
    gpu_checks,
    machine_checks,
    mend,
    ok,
    recipe_checks,
    store_check,
    store_checks,
    tracking_checks,
    version_checks,
    weights_files,
)
from workflows.jobs.submit import submit_job
from workflows.progress import say
from workflows.runtime.node_checks import node_reports, versions
from workflows.session import Session

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


JOB_S = 300.0


REPORT = "muva-doctor: "
"""Begins the line of a job's log that holds its checks."""


def checks_here() -> Iterator[Check]:
    """Python and packages of this machine."""
    yield from version_checks("here", platform.python_version(), versions())


def checks_on_cluster(
    cluster: ClusterSettings, address: str, typed: Sequence[str]
) -> Iterator[Check]:
    """What a cluster of other machines says: its door from here, the rest from a job there."""
    shown = redact(address)
    open_door = answer(address)
    if open_door == 200:
        yield mend(
            "token",
            shown,
            "whoever reaches this address runs code there. Start Ray with RAY_AUTH_MODE=token on "
            "all nodes",
        )
    try:
        if open_door == 401 and answer(address, token_header(cluster)) == 200:
            yield ok("token", shown, "asked for, and accepted")
        jobs_client(cluster)
    except MuvaError as error:
        yield mend("cluster", shown, str(error))
        return
    say(f"Asking the nodes of {shown} …")
    try:
        submission = submit_job(typed, cluster=cluster)
    except MuvaError as error:
        yield mend("jobs", shown, str(error))
        return
    job = submission.job
    try:
        details, log = _ended(submission.client, job)
    except MuvaError as error:
        yield mend("jobs", shown, str(error))
        return
    told = [line for line in log.splitlines() if line.startswith(REPORT)]
    if not told:
        last = " / ".join(log.strip().splitlines()[-3:]) or details.message or ""
        hint = ""
        if "ModuleNotFoundError" in last:
            hint = ". `python` must be there the environment with what requirements.lock names"
        yield mend("jobs", shown, f"job {job} told nothing. It said: {redact(last)}{hint}")
        return
    yield ok("jobs", shown, f"job {job} ran")
    for check in json.loads(told[-1].removeprefix(REPORT)):
        yield Check(**check)


def _ended(client: JobSubmissionClient, job: str) -> tuple[JobDetails, str]:
    """A job that has ended, and its log."""
    ends_at = time.monotonic() + JOB_S
    while not (details := job_details(client, job)).status.is_terminal():
        if time.monotonic() > ends_at:
            raise MuvaError(
                f"job {job} has not ended after {JOB_S:.0f} s: `muva jobs logs {job}` tells why"
            )
        time.sleep(0.3)
    with answering(client):
        return details, client.get_job_logs(job)


def checks_inside(session: Session, config: ExperimentConfig | None) -> list[Check]:
    """All that is checked from the driver: of a job, or on this machine."""
    from workflows.runtime.cluster import alive_nodes, cpus, gpus, ray_cluster

    joined = bool(os.environ.get("RAY_ADDRESS"))
    store = session.store.uri
    probe = f"doctor/{uuid.uuid4().hex}"
    checks = list(store_checks(session, probe))
    written = checks[-1].state == "ok"
    files = weights_files(config) if config is not None else []
    with ray_cluster():
        nodes = alive_nodes()
        if joined:
            said = f"{len(nodes)} nodes, {cpus()} cores, {gpus()} GPUs"
        else:
            said = (
                f"no cluster is named: each command starts Ray here, with {cpus()} cores and "
                f"{gpus()} GPUs; `muva submit` "
                + (f"uses the head at {head}" if (head := find_head()) else "starts a head")
            )
        checks.insert(0, ok("cluster", "driver", said))
        reports, silent = node_reports(
            nodes, store=store if written else None, probe=probe, files=files
        )
    if written:
        session.store.delete(probe)
    checks += [mend("node", name, redact(why)) for name, why in silent.items()]
    expected = platform.python_version()
    for name, found in reports.items():
        checks += version_checks(name, found.python, found.packages, driver=expected)
        checks += machine_checks(name, found)
        if written:
            checks.append(store_check(name, store, found))
    checks += agreement(reports)
    checks += gpu_checks(nodes, reports)
    checks += tracking_checks(session, nodes=len(nodes))
    if config is not None:
        checks += recipe_checks(session, config, reports, readable=written)
    return checks
