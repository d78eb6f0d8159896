"""`muva jobs`: the jobs of a Ray cluster, what they say, and the MLflow runs that they wrote."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.verb import as_text, cluster_options, json_option, print_result

if TYPE_CHECKING:
    from workflows.jobs.cluster_settings import ClusterSettings


STOP_S = 60.0
"""How long a job may take to end once it was told to; Ray kills it before."""


@click.group("jobs")
def jobs_verb() -> None:
    """See and stop the jobs of a Ray cluster.

    \b
    muva jobs list
    muva jobs logs --cluster laptop JOB
    muva jobs stop --address http://head:8265 JOB
    """


@jobs_verb.command("list")
@cluster_options
@json_option
def list_verb(cluster: ClusterSettings, as_json: bool) -> None:
    """List the jobs, the newest first.

    \b
    muva jobs list
    muva jobs list --cluster laptop --json
    """
    from workflows.jobs.client import answering, jobs_client
    from workflows.jobs.job_report import told_of

    client = jobs_client(cluster)
    with answering(client):
        found = client.list_jobs()
    submitted = [told_of(details) for details in found if details.submission_id]
    submitted.sort(key=lambda job: job["started"] or "", reverse=True)
    table = Table("job", "status", "started", "took", "command")
    for job in submitted:
        row = (job["job"], job["status"], job["started"] or "", _took(job), job["command"])
        table.add_row(*map(escape, row))
    print_result(submitted, as_json=as_json, text=as_text(table) if submitted else "No jobs yet.")


@jobs_verb.command("logs")
@cluster_options
@click.option("--follow", is_flag=True, help="Stay until it ends; the exit code is the job's.")
@json_option
@click.argument("job")
def logs_verb(cluster: ClusterSettings, follow: bool, as_json: bool, job: str) -> None:
    """Print what a job has said.

    \b
    muva jobs logs muva-run-0123456789abcdef-1
    muva jobs logs --follow muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import answering, job_details, jobs_client
    from workflows.jobs.follow import follow_job

    if follow and as_json:
        raise click.UsageError("--follow and --json: expected one of the two.")
    client = jobs_client(cluster)
    if follow:
        raise click.exceptions.Exit(follow_job(client, job))
    details = job_details(client, job)
    with answering(client):
        log = client.get_job_logs(job)
    told = {"job": job, "status": details.status.value.lower(), "log": log}
    print_result(told, as_json=as_json, text=log.removesuffix("\n"))


@jobs_verb.command("stop")
@cluster_options
@json_option
@click.argument("job")
def stop_verb(cluster: ClusterSettings, as_json: bool, job: str) -> None:
    """Stop a job, and wait until it has ended. What it has finished stays.

    \b
    muva jobs stop muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import answering, job_details, jobs_client
    from workflows.jobs.job_report import told_of

    client = jobs_client(cluster)
    ran = not job_details(client, job).status.is_terminal()
    if ran:
        with answering(client):
            client.stop_job(job)
    ends_at = time.monotonic() + STOP_S
    while not (details := job_details(client, job)).status.is_terminal():
        if time.monotonic() > ends_at:
            raise MuvaError(
                f"Job {job} was told to stop: expected its end, found that it still runs after "
                f"{STOP_S:.0f} s. `muva jobs show {job}` tells how it is"
            )
        time.sleep(0.3)
    told = told_of(details)
    said = f"Job {job}: {told['status']}"
    print_result(told, as_json=as_json, text=said if ran else f"{said} already")


@jobs_verb.command("show")
@cluster_options
@click.option(
    "--tracking-uri", help="MLflow, where the job does not tell: sqlite:///FILE or http://SERVER."
)
@json_option
@click.argument("job")
def show_verb(cluster: ClusterSettings, tracking_uri: str | None, as_json: bool, job: str) -> None:
    """What a job runs, how it is, and its runs in MLflow.

    \b
    muva jobs show muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import job_details, jobs_client
    from workflows.jobs.job_report import runs_of, told_of

    told = told_of(job_details(jobs_client(cluster), job))
    place = tracking_uri or cluster.tracking_uri or told["tracking_uri"]
    runs, complaint = runs_of(job, place)
    told |= {"tracking_uri": place and redact(place), "runs": runs}
    lines = [f"{name}: {value}" for name, value in told.items() if value and name != "runs"]
    lines += [f"run: {run['name']}  {run['link']}" for run in runs]
    if complaint:
        lines.append(f"runs: {complaint}")
    print_result({**told, "complaint": complaint}, as_json=as_json, text="\n".join(lines))


def _took(job: dict[str, Any]) -> str:
    if job["started"] is None:
        return ""
    end = datetime.fromisoformat(job["ended"]) if job["ended"] else datetime.now(UTC)
    seconds = (end - datetime.fromisoformat(job["started"])).total_seconds()
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
