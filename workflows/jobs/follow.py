"""Follows a Ray job: prints its log while it runs, and returns its exit code when it ends."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.exit_codes import INTERRUPTED
from workflows.jobs.client import (
    ClusterUnavailableError,
    UnknownJobError,
    cluster_errors_explained,
    job_details,
)
from workflows.progress import console, say

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

POLL_S = 0.5
RETRY_S = 2.0
UNAVAILABLE_S = 60.0
"""How long to retry, every `RETRY_S`, when a cluster does not respond."""


def follow_job(client: JobSubmissionClient, job: str) -> int:
    """Prints a job's log until the job ends; returns its exit code.

    Ctrl-C stops following, not the job, and returns 130. A broken connection is opened again, and
    the log resumes where it stopped.

    Raises:
        MuvaError: the cluster has no such job, has lost it, or no longer responds.
    """
    try:
        details = asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        console.print(f"\nNo longer following. {instructions(client, job)}", soft_wrap=True)
        return INTERRUPTED
    console.print(f"Job {job}: {details.status.value.lower()}", markup=False)
    if details.status.value == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None:
        console.print(redact(details.message or ""), markup=False, soft_wrap=True)
        if details.status.value == "FAILED":  # Ray ended the job, not the verb
            say("Submit the same command again: finished work is not computed again.")
        return 1
    # A job that a signal ended gets the exit code that a shell would report.
    return (
        details.driver_exit_code if details.driver_exit_code > 0 else 128 - details.driver_exit_code
    )


def instructions(client: JobSubmissionClient, job: str) -> str:
    """The commands that follow the job again, or stop it."""
    address = redact(client.get_address())
    return (
        "The job keeps running.\n"
        f"  follow it: muva submit --address {address} --attach {job}\n"
        f"  stop it:   muva jobs stop --address {address} {job}"
    )


class _Log:
    """The printed part of a job's log."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str, *, start: int = 0) -> None:
        """Prints the new part of a piece of the log that starts at the log's character `start`."""
        sys.stdout.write(text[max(0, self._shown - start) :])
        sys.stdout.flush()
        self._shown = max(self._shown, start + len(text))


async def _follow(client: JobSubmissionClient, job: str) -> JobDetails:
    """Prints the job's log while it runs; returns its final details.

    The status is polled because Ray ends the stream of the log only seconds after the job.
    """
    log = _Log()
    details = job_details(client, job)
    stream = asyncio.create_task(_stream(client, job, log))
    while not details.status.is_terminal():
        await asyncio.sleep(POLL_S)
        details = await asyncio.to_thread(_details, client, job)
    stream.cancel()
    log.show(await asyncio.to_thread(_whole_log, client, job))
    return details


async def _stream(client: JobSubmissionClient, job: str, log: _Log) -> None:
    import aiohttp

    while True:
        start = 0
        try:
            async for text in client.tail_job_logs(job):
                log.show(text, start=start)
                start += len(text)
            return
        except (RuntimeError, OSError, aiohttp.ClientError):
            await asyncio.sleep(RETRY_S)  # a new connection sends the log from its start


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    """The details of a job that the cluster has known before; retries while it is unavailable."""
    unavailable_since = time.monotonic()
    while True:
        try:
            return job_details(client, job)
        except UnknownJobError as error:
            raise MuvaError(
                f"The Ray cluster at {redact(client.get_address())} was restarted and no longer "
                f"knows the job {job}, which ended with the previous cluster. Submit the same "
                "command again: finished work is kept in the store and not computed again."
            ) from error
        except ClusterUnavailableError as error:
            if time.monotonic() - unavailable_since > UNAVAILABLE_S:
                raise MuvaError(
                    f"The Ray cluster at {redact(client.get_address())} has not responded for "
                    f"{UNAVAILABLE_S:.0f} s: its head or the connection to it is lost. Submit the "
                    "same command again once the cluster responds: it follows the job if that "
                    "still runs, and otherwise resumes from the finished work."
                ) from error
            time.sleep(RETRY_S)


def _whole_log(client: JobSubmissionClient, job: str) -> str:
    """The log of an ended job, or a note that the cluster could not send it."""
    try:
        with cluster_errors_explained(client):
            return client.get_job_logs(job)
    except ClusterUnavailableError as error:
        return f"The end of the log is missing: {error}\n"
