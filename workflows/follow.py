"""Following a Ray job: its log while it runs, its exit code when it has ended."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.cli import INTERRUPTED
from workflows.job_client import job_details
from workflows.progress import console

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

POLL_S = 0.5
RETRY_S = 2.0
ATTEMPTS = 10
"""How often a cluster that does not answer is asked again, `RETRY_S` apart."""


def follow_job(client: JobSubmissionClient, job: str) -> int:
    """Prints what the job says until it ends; returns its exit code.

    Ctrl-C ends the following, not the job, and returns 130. A connection that breaks is taken up
    again where it broke.

    Raises:
        MuvaError: the cluster has no such job, or does not answer any more.
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
        console.print(redact(details.message or ""), markup=False)
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
    stream = asyncio.create_task(_stream(client, job, log))
    while not (details := await asyncio.to_thread(_details, client, job)).status.is_terminal():
        await asyncio.sleep(POLL_S)
    stream.cancel()
    log.show(await asyncio.to_thread(client.get_job_logs, job))
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
        except (RuntimeError, aiohttp.ClientError):
            await asyncio.sleep(RETRY_S)  # and a new connection tells all from the start


def _details(client: JobSubmissionClient, job: str) -> JobDetails:
    import requests

    silence: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            return job_details(client, job)
        except requests.RequestException as error:
            silence = error
            time.sleep(RETRY_S)
    raise MuvaError(
        f"The Ray cluster at {redact(client.get_address())} does not answer any more. Whether the "
        f"job goes on is not known: `muva jobs show {job}` tells once it answers again."
    ) from silence
