"""`muva submit`: any verb as a job on a Ray cluster, followed until it ends.

A job's id is made of what it runs: whoever submits the same thing while it runs follows that job
instead of starting a second one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tracking.redaction import redact
from workflows.verb import cluster_options, json_option, print_result
from workflows.verbs import VERBS

if TYPE_CHECKING:
    from workflows.jobs.cluster_settings import ClusterSettings


@click.command("submit", context_settings={"ignore_unknown_options": True})
@cluster_options
@click.option("--follow/--detach", default=True, show_default=True, help="Stay until the job ends.")
@click.option(
    "--upload/--in-place",
    default=None,
    help="Send this code along, or run it where it is. [--upload with an address]",
)
@click.option(
    "--wait-for",
    metavar="GPU=4,CPU=16",
    help="Begin when the cluster has so much; an autoscaler is asked for it.",
)
@click.option("--attach", metavar="JOB", help="Follow a job that was submitted before.")
@json_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def submit_verb(
    cluster: ClusterSettings,
    follow: bool,
    upload: bool | None,
    wait_for: str | None,
    attach: str | None,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run a verb as a job on a Ray cluster; starts one here when there is none.

    The exit code is the job's. The same command, code and store while the job runs: it is followed,
    not started again. On a cluster of other machines, name stores and MLflow by addresses that they
    can reach: s3://bucket/prefix, http://host:port.

    \b
    muva submit -- run demo
    muva submit --detach --json -- run demo
    muva submit --cluster laptop -- run demo
    muva submit --address http://head:8265 -- train --sources a,b --store s3://people/store
    muva submit --attach muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import jobs_client
    from workflows.jobs.follow import follow_job, how_to_return
    from workflows.jobs.submit import submit_and_follow, submit_job
    from workflows.runtime.autoscaling import resources

    if as_json and (follow or attach is not None):
        raise click.UsageError(
            "--json tells of a job that is left alone, with --detach. What a followed job prints "
            "is its verb's: give --json to the verb, after --."
        )
    if attach is not None:
        if command:
            raise click.UsageError("--attach follows a job that exists: it takes no verb.")
        raise click.exceptions.Exit(follow_job(jobs_client(cluster), attach))
    if not command or command[0] not in VERBS:
        said = f"{command[0]} is no verb" if command else "Which verb?"
        raise click.UsageError(f"{said}: expected one of {', '.join(VERBS)} after --")
    if wait_for is not None:
        cluster = cluster.model_copy(update={"wait_for": resources(wait_for)})
    if follow:
        raise click.exceptions.Exit(submit_and_follow(command, cluster=cluster, upload=upload))
    submission = submit_job(command, cluster=cluster, upload=upload)
    told = {
        "job": submission.job,
        "address": redact(submission.client.get_address()),
        "started": submission.started,
    }
    text = how_to_return(submission.client, submission.job)
    print_result(told, as_json=as_json, text=text)
