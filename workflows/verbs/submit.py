"""`muva submit`: runs any verb as a job on a Ray cluster and follows it until it ends.

A job's id depends on what it runs: submitting the same command while it runs attaches to the
running job instead of starting a second one.
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
@click.option(
    "--follow/--detach", default=True, show_default=True, help="Follow the job until it ends."
)
@click.option(
    "--upload/--in-place",
    default=None,
    help="Upload this code, or run it where it is. [--upload if there is an address]",
)
@click.option(
    "--wait-for",
    metavar="GPU=4,CPU=16",
    help="Start once the cluster has these resources; an autoscaler is asked for them.",
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
    """Run a verb as a job on a Ray cluster; starts a head on this machine if there is no cluster.

    The exit code is the job's. Submitting the same command with the same code and store while the
    job runs attaches to it. On a cluster of other machines, give addresses of the store and of
    MLflow that these can reach: s3://bucket/prefix, http://host:port.

    \b
    muva submit -- run demo
    muva submit --detach --json -- run demo
    muva submit --cluster laptop -- run demo
    muva submit --address http://head:8265 -- train --sources a,b --store s3://people/store
    muva submit --attach muva-run-0123456789abcdef-1
    """
    from workflows.jobs.client import jobs_client
    from workflows.jobs.follow import follow_job, instructions
    from workflows.jobs.submit import submit_and_follow, submit_job
    from workflows.runtime.autoscaling import resources

    if as_json and (follow or attach is not None):
        raise click.UsageError(
            "--json describes the submitted job, and works only with --detach. For the verb's own "
            "result as JSON, give --json to the verb, after --."
        )
    if attach is not None:
        if command:
            raise click.UsageError("--attach follows an existing job: it takes no verb.")
        raise click.exceptions.Exit(follow_job(jobs_client(cluster, start=False), attach))
    if not command or command[0] not in VERBS:
        problem = f"{command[0]} is not a verb" if command else "The verb is missing"
        raise click.UsageError(f"{problem}: expected one of {', '.join(VERBS)} after --")
    if wait_for is not None:
        cluster = cluster.model_copy(update={"wait_for": resources(wait_for)})
    if follow:
        raise click.exceptions.Exit(submit_and_follow(command, cluster=cluster, upload=upload))
    submission = submit_job(command, cluster=cluster, upload=upload)
    data = {
        "job": submission.job,
        "address": redact(submission.client.get_address()),
        "started": submission.started,
    }
    text = instructions(submission.client, submission.job)
    print_result(data, as_json=as_json, text=text)
