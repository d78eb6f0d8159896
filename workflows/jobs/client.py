"""The way to a cluster's Jobs API: its address, found or started, and the token in the header.

Ray is imported inside the functions: it decides at its first import whether it uses tokens, and
what calls these functions may have to say so first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.jobs.cluster_settings import ClusterSettings, token_of
from workflows.jobs.head import find_head, start_head
from workflows.progress import console
from workflows.runtime.authentication import authorisation, bearer
from workflows.runtime.quirks import client_environment, client_with_timeouts, quiet_about_requests

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_S = (10.0, 60.0)
"""How long a cluster may take to be reached, and to answer. A machine that is lost refuses nothing:
without these, whoever asks it would wait for ever."""
_NOT_FOUND = "status code 404"
_LONGEST_REASON = 300


def jobs_client(cluster: ClusterSettings) -> JobSubmissionClient:
    """The client of a cluster's Jobs API, with the token.

    Without an address it is the cluster of `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS`, else a head
    on this machine, which is started if need be.

    Raises:
        MuvaError: nothing answers there, or it refuses the token.
    """
    import requests

    # As Ray understands its own variables: HOST:PORT is not the dashboard's there.
    url = cluster.address or address_of_environment() or find_head() or _started_head()
    headers = token_header(cluster)
    with client_environment(token=bool(headers)):
        from ray.exceptions import AuthenticationError

        quiet_about_requests()
        try:
            return client_with_timeouts(url, headers=headers, timeout_s=ANSWER_S)
        except AuthenticationError as error:
            complaint = "refuses the token" if headers else "asks for a token, and there is none"
            raise MuvaError(
                f"The Ray cluster at {redact(url)} {complaint}: expected the cluster's own "
                f"{cluster.token_places}."
            ) from error
        except (OSError, RuntimeError, ValueError, requests.RequestException) as error:
            raise MuvaError(
                f"No Ray cluster takes jobs at {redact(url)}: {redact(str(error))} Expected its "
                "dashboard's address, http://HOST:8265 unless it was changed. Start one on this "
                "machine with `muva submit` without --address and --cluster."
            ) from error


class SilentClusterError(MuvaError):
    """A cluster gave no answer, or none that can be used."""


class UnknownJobError(MuvaError):
    """A cluster knows no job of an id."""


@contextmanager
def answering(client: JobSubmissionClient) -> Iterator[None]:
    """What goes wrong on the way to a cluster within the block, as a MuvaError.

    Raises:
        SilentClusterError: the cluster does not answer, or its answer is a fault.
        MuvaError: it does not take the token.
    """
    from ray.exceptions import AuthenticationError

    where = redact(client.get_address())
    try:
        yield
    except AuthenticationError as error:
        raise MuvaError(
            f"The Ray cluster at {where} does not take the token that it took before: was it "
            "started anew with another one? Expected the cluster's own."
        ) from error
    except (OSError, RuntimeError) as error:  # OSError: all of requests' errors
        raise SilentClusterError(
            f"The Ray cluster at {where} does not answer: {last_line(error)}. Expected its "
            "dashboard; once its head runs, the same command may be given again."
        ) from error


def last_line(error: Exception) -> str:
    """What an error comes to: Ray's dashboard sends whole tracebacks."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_LONGEST_REASON].rstrip(".")


def token_header(cluster: ClusterSettings) -> dict[str, str]:
    """The header with the cluster's token; empty where there is none."""
    token = token_of(cluster)
    return bearer(token) if token else authorisation()


def job_details(client: JobSubmissionClient, job: str) -> JobDetails:
    """What the cluster knows of a job.

    Raises:
        UnknownJobError: it knows none of that id.
        SilentClusterError: it does not answer.
    """
    with answering(client):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if _NOT_FOUND not in str(error):
                raise
            raise UnknownJobError(
                f"No job {job} at {redact(client.get_address())}: expected one of those that "
                f"`muva jobs list` shows. Ray says: {last_line(error)}"
            ) from error


def address_of_environment() -> str | None:
    """The cluster that Ray's own variables name."""
    return next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)


def _started_head() -> str:
    console.print("No Ray cluster on this machine: starting one …")
    head = start_head()
    console.print(
        f"Ray runs at {head.address}, guarded by your Ray token, and goes on after this command. "
        f"Stop it with: kill {head.pid}",
        soft_wrap=True,
    )
    return head.address
