"""`muva jobs`: the jobs of a Ray cluster, their logs, and the MLflow runs that they wrote."""

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
"""How long to wait for a job to stop; Ray kills it earlier."""


@click.group("jobs")
def jobs_verb() -> None:
    """List, show and stop the jobs of a Ray cluster.

    \b
    muva jobs list
    muva jobs logs --cluster laptop JOB
    muva jobs stop --address http://head:8265 JOB
    """


@jobs_verb.command("list")
@cluster_options
@json_option
def list_verb(cluster: ClusterSettings, as_json: bool) -> None:
    """List the jobs, newest first.

    \b
    muva jobs list
    muva jobs list --cluster laptop --json
    """
    from workflows.jobs.client import NoClusterError, cluster_errors_explained, jobs_client
    from workflows.jobs.job_report import job_data

    try:
        client = jobs_client(cluster, start=False)
    except NoClusterError as error:
        print_result([], as_json=as_json, text=f"No jobs: {error}.")
        return
    with cluster_errors_explained(client):
        jobs = client.list_jobs()
    submitted = [job_data(details) for details in jobs if details.submission_id]
    submitted.sort(key=lambda job: job["started"] or "", reverse=True)
    table = Table("job", "status", "started", "took", "command")
    for job in submitted:
        row = (job["job"], job["status"], job["started"] or "", _duration(job), job["command"])
        table.add_row(*map(escape, row))
    print_result(submitted, as_json=as_json, text=as_text(table) if submitted else "No jobs yet.")


@jobs_verb.command("logs")
@cluster_options
@click.option(
    "--follow", is_flag=True, help="Print until the job ends, and exit with its exit code."
)
@json_option
@click.argument("job")
def logs_verb(cluster: ClusterSettings, follow: bool, as_json: bool, job: str) -> None:
    """Print the log of a job.

    \b
    muva jobs logs muva-run-0123456789abcdef-1
    muva jobs logs --follow muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import cluster_errors_explained, job_details, jobs_client
    from workflows.jobs.follow import follow_job

    if follow and as_json:
        raise click.UsageError("--follow and --json: expected only one of the two.")
    client = jobs_client(cluster, start=False)
    if follow:
        raise click.exceptions.Exit(follow_job(client, job))
    details = job_details(client, job)
    with cluster_errors_explained(client):
        log = client.get_job_logs(job)
    data = {"job": job, "status": details.status.value.lower(), "log": log}
    print_result(data, as_json=as_json, text=log.removesuffix("\n"))


@jobs_verb.command("stop")
@cluster_options
@json_option
@click.argument("job")
def stop_verb(cluster: ClusterSettings, as_json: bool, job: str) -> None:
    """Stop a job and wait until it has ended. Finished work is kept.

    \b
    muva jobs stop muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import cluster_errors_explained, job_details, jobs_client
    from workflows.jobs.job_report import job_data

    client = jobs_client(cluster, start=False)
    was_running = not job_details(client, job).status.is_terminal()
    if was_running:
        with cluster_errors_explained(client):
            client.stop_job(job)
    deadline = time.monotonic() + STOP_S
    while not (details := job_details(client, job)).status.is_terminal():
        if time.monotonic() > deadline:
            raise MuvaError(
                f"Job {job} is still running {STOP_S:.0f} s after it was asked to stop. `muva jobs "
                f"show {job}` shows its status"
            )
        time.sleep(0.3)
    data = job_data(details)
    text = f"Job {job}: {data['status']}"
    print_result(data, as_json=as_json, text=text if was_running else f"{text} already")


@jobs_verb.command("show")
@cluster_options
@click.option(
    "--tracking-uri",
    help="MLflow's address if the job did not record it: sqlite:///FILE or http://SERVER.",
)
@json_option
@click.argument("job")
def show_verb(cluster: ClusterSettings, tracking_uri: str | None, as_json: bool, job: str) -> None:
    """Show the command of a job, its status, and its runs in MLflow.

    \b
    muva jobs show muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import job_details, jobs_client
    from workflows.jobs.job_report import job_data, runs_of_job

    data = job_data(job_details(jobs_client(cluster, start=False), job))
    uri = tracking_uri or cluster.tracking_uri or data["tracking_uri"]
    runs, problem = runs_of_job(job, uri)
    data |= {"tracking_uri": uri and redact(uri), "runs": runs}
    lines = [f"{name}: {value}" for name, value in data.items() if value and name != "runs"]
    lines += [f"run: {run['name']}  {run['link']}" for run in runs]
    if problem:
        lines.append(f"runs: {problem}")
    print_result({**data, "complaint": problem}, as_json=as_json, text="\n".join(lines))


def _duration(job: dict[str, Any]) -> str:
    if job["started"] is None:
        return ""
    end = datetime.fromisoformat(job["ended"]) if job["ended"] else datetime.now(UTC)
    seconds = (end - datetime.fromisoformat(job["started"])).total_seconds()
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
