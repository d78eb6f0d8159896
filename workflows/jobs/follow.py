"""Following a Ray job: its log while it runs, its exit code when it has ended."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.exit_codes import INTERRUPTED
from workflows.jobs.client import SilentClusterError, UnknownJobError, answering, job_details
from workflows.progress import console, say

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

POLL_S = 0.5
RETRY_S = 2.0
SILENCE_S = 60.0
"""For so long a cluster that does not answer is asked again, `RETRY_S` apart."""


def follow_job(client: JobSubmissionClient, job: str) -> int:
    """Prints what the job says until it ends; returns its exit code.

    Ctrl-C ends the following, not the job, and returns 130. A connection that breaks is taken up
    again where it broke.

    Raises:
        MuvaError: the cluster has no such job, has lost it, or does not answer any more.
    """
    try:
        details = asyncio.run(_followed(client, job))
    except KeyboardInterrupt:
        console.print(f"\nNot followed any more. {how_to_return(client, job)}", soft_wrap=True)
        return INTERRUPTED
    console.print(f"Job {job}: {details.status.value.lower()}", markup=False)
    if details.status.value == "SUCCEEDED":
        return 0
    if details.driver_exit_code is None:
        console.print(redact(details.message or ""), markup=False, soft_wrap=True)
        if details.status.value == "FAILED":  # Ray's doing, not the verb's
            say("Submit the same command again: what was finished is not computed again.")
        return 1
    # Ended by a signal: as a shell gives it.
    return (
        details.driver_exit_code if details.driver_exit_code > 0 else 128 - details.driver_exit_code
    )


def how_to_return(client: JobSubmissionClient, job: str) -> str:
    """What a person types to follow the job again, or to stop it."""
    address = redact(client.get_address())
    return (
        "The job goes on.\n"
        f"  follow it: muva submit --address {address} --attach {job}\n"
        f"  stop it:   muva jobs stop --address {address} {job}"
    )


class _Log:
    """A job's log as far as it has been printed."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str, *, start: int = 0) -> None:
        """Prints what is new in a piece of the log that starts at character `start` of it."""
        sys.stdout.write(text[max(0, self._shown - start) :])
        sys.stdout.flush()
        self._shown = max(self._shown, start + len(text))


async def _followed(client: JobSubmissionClient, job: str) -> JobDetails:
    """Prints the job's log while it runs; what is known of it when it has ended.

    Ray's stream of the log ends seconds after the job; the job's state says so at once.
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
            await asyncio.sleep(RETRY_S)  # and a new connection tells all from the start


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of a job that it has known before; a silence is waited out."""
    silent_since = time.monotonic()
    while True:
        try:
            return job_details(client, job)
        except UnknownJobError as error:
            raise MuvaError(
                f"The Ray cluster at {redact(client.get_address())} was started anew, and the job "
                f"{job} ended with the one before: it is not known there any more. Submit the "
                "same command again; what was finished is kept in the store and not computed again."
            ) from error
        except SilentClusterError as error:
            if time.monotonic() - silent_since > SILENCE_S:
                raise MuvaError(
                    f"The Ray cluster at {redact(client.get_address())} has not answered for "
                    f"{SILENCE_S:.0f} s: its head is lost, or the way to it. Once it answers, "
                    "submit the same command again: a job that still runs is followed, and "
                    "otherwise goes on from what was finished."
                ) from error
            time.sleep(RETRY_S)


def _whole_log(client: JobSubmissionClient, job: str) -> str:
    """The log of a job that has ended; a line about it where the cluster does not give it."""
    try:
        with answering(client):
            return client.get_job_logs(job)
    except SilentClusterError as error:
        return f"The end of the log is missing: {error}\n"
