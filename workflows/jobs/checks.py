"""All checks of `muva doctor`: of this machine, or of a cluster by a job on it."""

from __future__ import annotations

import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from muva.config import ExperimentConfig
from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.jobs.client import (
    cluster_errors_explained,
    job_details,
    jobs_client,
    token_header,
)
from workflows.jobs.cluster_settings import ClusterSettings
from workflows.jobs.head import find_head, http_status
from workflows.jobs.readiness import (
    Check,
    fail,
    gpu_checks,
    machine_checks,
    ok,
    recipe_checks,
    store_check,
    store_checks,
    tracking_checks,
    version_agreement,
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
"""The prefix of the line in a job's log that holds its checks."""


def local_version_checks() -> Iterator[Check]:
    """Checks of Python and the packages on this machine."""
    yield from version_checks("here", platform.python_version(), versions())


def remote_cluster_checks(
    cluster: ClusterSettings, address: str, argv: Sequence[str]
) -> Iterator[Check]:
    """Checks of a cluster of other machines: its token from here, the rest by the job `argv`."""
    shown = redact(address)
    status_without_token = http_status(address)
    if status_without_token == 200:
        yield fail(
            "token",
            shown,
            "anyone who can reach this address can run code on the cluster. Start Ray with "
            "RAY_AUTH_MODE=token on all nodes",
        )
    try:
        if status_without_token == 401 and http_status(address, token_header(cluster)) == 200:
            yield ok("token", shown, "required and accepted")
        jobs_client(cluster)
    except MuvaError as error:
        yield fail("cluster", shown, str(error))
        return
    say(f"Checking the nodes of {shown} …")
    try:
        submission = submit_job(argv, cluster=cluster)
    except MuvaError as error:
        yield fail("jobs", shown, str(error))
        return
    job = submission.job
    try:
        details, log = _wait_until_ended(submission.client, job)
    except MuvaError as error:
        yield fail("jobs", shown, str(error))
        return
    reports = [line for line in log.splitlines() if line.startswith(REPORT)]
    if not reports:
        last = " / ".join(log.strip().splitlines()[-3:]) or details.message or ""
        hint = ""
        if "ModuleNotFoundError" in last:
            hint = (
                ". `python` on the cluster must be an environment with the packages of "
                "requirements.lock"
            )
        yield fail(
            "jobs", shown, f"job {job} printed no report. Its last output: {redact(last)}{hint}"
        )
        return
    yield ok("jobs", shown, f"job {job} ran")
    for check in json.loads(reports[-1].removeprefix(REPORT)):
        yield Check(**check)


def _wait_until_ended(client: JobSubmissionClient, job: str) -> tuple[JobDetails, str]:
    """A job's final details and its log."""
    deadline = time.monotonic() + JOB_S
    while not (details := job_details(client, job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise MuvaError(
                f"job {job} has not ended after {JOB_S:.0f} s: `muva jobs logs {job}` shows its log"
            )
        time.sleep(0.3)
    with cluster_errors_explained(client):
        return details, client.get_job_logs(job)


def driver_checks(session: Session, config: ExperimentConfig | None) -> list[Check]:
    """All checks that a driver makes, in a job or on this machine."""
    from workflows.runtime.cluster import alive_nodes, cpus, gpus, ray_cluster

    on_cluster = bool(os.environ.get("RAY_ADDRESS"))
    store = session.store.uri
    probe = f"doctor/{uuid.uuid4().hex}"
    checks = list(store_checks(session, probe))
    store_works = checks[-1].state == "ok"
    files = weights_files(config) if config is not None else []
    with ExitStack() as stack:
        try:
            stack.enter_context(ray_cluster())
        except MuvaError as error:
            if store_works:
                session.store.delete(probe)
            checks.insert(0, fail("cluster", "driver", str(error)))
            return [*checks, *tracking_checks(session, nodes=1)]
        nodes = alive_nodes()
        if on_cluster:
            resources = f"{len(nodes)} nodes, {cpus()} cores, {gpus()} GPUs"
        else:
            resources = (
                f"no cluster is named: each command starts Ray on this machine, with {cpus()} "
                f"cores and {gpus()} GPUs; `muva submit` "
                + (f"uses the head at {head}" if (head := find_head()) else "starts a head")
            )
        checks.insert(0, ok("cluster", "driver", resources))
        reports, silent = node_reports(
            nodes, store=store if store_works else None, probe=probe, files=files
        )
    if store_works:
        session.store.delete(probe)
    checks += [fail("node", name, redact(reason)) for name, reason in silent.items()]
    expected = platform.python_version()
    for name, report in reports.items():
        checks += version_checks(name, report.python, report.packages, driver=expected)
        checks += machine_checks(name, report)
        if store_works:
            checks.append(store_check(name, store, report))
    checks += version_agreement(reports)
    checks += gpu_checks(nodes, reports)
    checks += tracking_checks(session, nodes=len(nodes))
    if config is not None:
        checks += recipe_checks(session, config, reports, readable=store_works)
    return checks
