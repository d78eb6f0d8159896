"""`muva doctor`: whether machines, store and MLflow are ready, before work that costs something.

On this machine, or on a cluster: there the checks are a job, whose driver asks every node by a Ray
task. Nothing is changed but a key in the store, which is deleted again.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from muva.config import ExperimentConfig, load_recipe
from muva.errors import MuvaError
from tracking.redaction import redact
from tracking.source import JOB_VARIABLE
from workflows.cluster_settings import ClusterSettings, cluster_options
from workflows.job_client import (
    ADDRESS_VARIABLES,
    answering,
    job_details,
    jobs_client,
    token_header,
)
from workflows.node_checks import NodeReport, node_report, versions
from workflows.progress import say
from workflows.ray_head import answer, find_head
from workflows.readiness import (
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
from workflows.session import (
    Session,
    json_option,
    override_option,
    print_result,
    session_options,
)
from workflows.submit import submit_job

if TYPE_CHECKING:
    import ray
    from ray.job_submission import JobDetails, JobSubmissionClient

NODE_S = 120.0
"""How long a node may take to answer: its first process imports much."""
JOB_S = 300.0
REPORT = "muva-doctor: "
"""Begins the line of a job's log that holds its checks."""


@click.command("doctor")
@cluster_options
@click.option("--recipe", help="Also check what this recipe needs: a shipped one, or a YAML file.")
@override_option
@click.option("--report", is_flag=True, hidden=True)
@json_option
@session_options
@click.pass_context
def doctor_verb(
    context: click.Context,
    cluster: ClusterSettings,
    recipe: str | None,
    overrides: tuple[str, ...],
    report: bool,
    as_json: bool,
    session: Session,
) -> None:
    """Check machines, versions, token, store and MLflow; exit code 1 when something must be mended.

    \b
    muva doctor
    muva doctor --recipe demo
    muva doctor --cluster laptop --recipe base --set grounding.expert=florence-2
    """
    if overrides and recipe is None:
        raise click.UsageError("--set changes a setting of a recipe: name it with --recipe")
    config = load_recipe(recipe, overrides=overrides) if recipe is not None else None
    elsewhere = cluster.address or os.environ.get(ADDRESS_VARIABLES[0])
    if elsewhere and JOB_VARIABLE not in os.environ:
        typed = _typed(context, recipe, overrides)
        checks = [*_here(), *_on_cluster(cluster, elsewhere, typed)]
    else:
        checks = _inside(session, config)
    told = [dataclasses.asdict(check) for check in checks]
    if report:
        click.echo(f"{REPORT}{json.dumps(told)}")
        return
    print_result(told, as_json=as_json, text="\n".join(map(_line, checks)))
    if any(check.state == "mend" for check in checks):
        raise click.exceptions.Exit(1)


def _typed(context: click.Context, recipe: str | None, overrides: Sequence[str]) -> list[str]:
    """The options that the job gets: those of the command line, whose defaults differ there."""
    words = ["doctor", "--report"]
    if recipe is not None:
        words += ["--recipe", recipe]
    words += [word for override in overrides for word in ("--set", override)]
    for name in ("home", "store", "tracking_uri"):
        source = context.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE:
            words += [f"--{name.replace('_', '-')}", str(context.params[name])]
    return words


def _line(check: Check) -> str:
    mark = {"ok": "ok  ", "note": "note", "mend": "MEND"}[check.state]
    return f"{mark}  {check.what:<10} {check.where}: {check.said}"


def _here() -> Iterator[Check]:
    yield from version_checks("here", platform.python_version(), versions())


def _on_cluster(cluster: ClusterSettings, address: str, typed: Sequence[str]) -> Iterator[Check]:
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


def _inside(session: Session, config: ExperimentConfig | None) -> list[Check]:
    """All that is checked from the driver: of a job, or on this machine."""
    import ray

    from workflows.cluster import cpus, gpus, ray_cluster

    joined = bool(os.environ.get("RAY_ADDRESS"))
    store = session.store.uri
    probe = f"doctor/{uuid.uuid4().hex}"
    checks = list(store_checks(session, probe))
    written = checks[-1].state == "ok"
    files = weights_files(config) if config is not None else []
    with ray_cluster():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if joined:
            said = f"{len(nodes)} nodes, {cpus()} cores, {gpus()} GPUs"
        else:
            said = (
                f"no cluster is named: each command starts Ray here, with {cpus()} cores and "
                f"{gpus()} GPUs; `muva submit` "
                + (f"uses the head at {head}" if (head := find_head()) else "starts a head")
            )
        checks.insert(0, ok("cluster", "driver", said))
        reports, silent = _ask(nodes, store=store if written else None, probe=probe, files=files)
    if written:
        session.store.delete(probe)
    checks += silent
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


def _ask(
    nodes: Sequence[dict[str, Any]], *, store: str | None, probe: str, files: Sequence[str]
) -> tuple[dict[str, NodeReport], list[Check]]:
    """The report of each node by its name, and a check for each that did not give one."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(node_report)
    asked: dict[str, ray.ObjectRef] = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}"
        asked[name] = task.options(scheduling_strategy=there).remote(store, probe, files)
    reports, silent = {}, []
    for name, reference in asked.items():
        try:
            reports[name] = ray.get(reference, timeout=NODE_S)
        except GetTimeoutError:
            silent.append(mend("node", name, f"did not answer in {NODE_S:.0f} s"))
        except RayError as error:
            last = str(error).strip().splitlines()[-1]
            silent.append(mend("node", name, f"cannot run a task of muva's: {redact(last)}"))
    return reports, silent
