"""Clients of a cluster's Jobs API: they find or start the cluster and send the token.

Ray is imported inside functions: its first import decides whether it uses tokens, and the callers
may have to set that before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.jobs.cluster_settings import ClusterSettings, token_of
from workflows.jobs.head import find_head, start_head, starting_one_at_a_time
from workflows.progress import console
from workflows.runtime.authentication import authorisation, bearer
from workflows.runtime.cluster_address import check_responds
from workflows.runtime.quirks import client_environment, client_with_timeouts, quiet_about_requests

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TIMEOUTS_S = (10.0, 60.0)
"""Timeouts for the connection and for the response. A lost machine does not refuse connections, so
without timeouts its clients would wait forever."""
_NOT_FOUND = "status code 404"
_MAX_REASON_LENGTH = 300


def jobs_client(cluster: ClusterSettings, *, start: bool = True) -> JobSubmissionClient:
    """A client of a cluster's Jobs API that sends the token.

    Without an address, the cluster is that of `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS`, else a
    head on this machine.

    start: whether to start a head if there is none.

    Raises:
        NoClusterError: no cluster is named, none runs on this machine, and none may be started.
        MuvaError: the cluster does not respond, or refuses the token.
    """
    import requests

    # Addresses from the environment have Ray's own meaning: HOST:PORT is not the dashboard's.
    url = cluster.address or address_of_environment() or find_head()
    if url is None and start:
        with starting_one_at_a_time():
            url = find_head() or _start_head()
    if url is None:
        raise NoClusterError(
            "No Ray head of this account runs on this machine, and no other cluster is named. Name "
            "one with --cluster or --address; `muva submit` starts a head"
        )
    if "://" not in url and url != "auto":
        # Ray asks the head for its dashboard, and waits for minutes if the head is gone.
        variable = next(name for name in ADDRESS_VARIABLES if os.environ.get(name))
        check_responds(url, variable=variable)
    headers = token_header(cluster)
    with client_environment(token=bool(headers)):
        from ray.exceptions import AuthenticationError

        quiet_about_requests()
        try:
            return client_with_timeouts(url, headers=headers, timeout_s=TIMEOUTS_S)
        except AuthenticationError as error:
            problem = "refuses the token" if headers else "requires a token, and none is set"
            raise MuvaError(
                f"The Ray cluster at {redact(url)} {problem}: expected the cluster's own token "
                f"{cluster.token_places}."
            ) from error
        except (OSError, RuntimeError, ValueError, requests.RequestException) as error:
            raise MuvaError(
                f"No Ray cluster accepts jobs at {redact(url)}: {redact(str(error))} Expected the "
                "dashboard's address, by default http://HOST:8265. To start a cluster on this "
                "machine, run `muva submit` without --address and --cluster."
            ) from error


class NoClusterError(MuvaError):
    """There is no cluster that could have jobs."""


class ClusterUnavailableError(MuvaError):
    """A cluster does not respond, or responds with an error."""


class UnknownJobError(MuvaError):
    """A cluster has no job with this id."""


@contextmanager
def cluster_errors_explained(client: JobSubmissionClient) -> Iterator[None]:
    """Turns errors of requests to a cluster in the block into a MuvaError.

    Raises:
        ClusterUnavailableError: the cluster does not respond, or responds with an error.
        MuvaError: the cluster refuses the token.
    """
    from ray.exceptions import AuthenticationError

    where = redact(client.get_address())
    try:
        yield
    except AuthenticationError as error:
        raise MuvaError(
            f"The Ray cluster at {where} refuses the token that it accepted before: was it "
            "restarted with another one? Expected the cluster's own."
        ) from error
    except (OSError, RuntimeError) as error:  # OSError: all of requests' errors
        raise ClusterUnavailableError(
            f"The Ray cluster at {where} does not respond: {last_line(error)}. Expected its "
            "dashboard. Run the same command again once its head runs."
        ) from error


def last_line(error: Exception) -> str:
    """The last line of an error's message: Ray's dashboard sends whole tracebacks."""
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_MAX_REASON_LENGTH].rstrip(".")


def token_header(cluster: ClusterSettings) -> dict[str, str]:
    """The header with the cluster's token; empty if there is none."""
    token = token_of(cluster)
    return bearer(token) if token else authorisation()


def job_details(client: JobSubmissionClient, job: str) -> JobDetails:
    """The details of a job.

    Raises:
        UnknownJobError: the cluster has no job with this id.
        ClusterUnavailableError: the cluster does not respond.
    """
    with cluster_errors_explained(client):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            if _NOT_FOUND not in str(error):
                raise
            raise UnknownJobError(
                f"No job {job} at {redact(client.get_address())}: expected one that `muva jobs "
                f"list` shows. Ray's message: {last_line(error)}"
            ) from error


def address_of_environment() -> str | None:
    """The address of the cluster that Ray's own environment variables name.

    `local`, Ray's word for a cluster that the process starts itself, names none.
    """
    named = (os.environ.get(variable) for variable in ADDRESS_VARIABLES)
    return next((address for address in named if address and address != "local"), None)


def dashboard_of_environment() -> str | None:
    """The address of a dashboard that Ray's own environment variables name; None for a head's."""
    api, address = (os.environ.get(variable, "") for variable in ADDRESS_VARIABLES)
    return api or (address if address.startswith(("http://", "https://")) else None)


def _start_head() -> str:
    console.print("No Ray cluster on this machine: starting one …")
    head = start_head()
    console.print(
        f"Ray runs at {head.address}, protected by your Ray token, and keeps running after this "
        f"command. Stop it with: kill {head.pid}",
        soft_wrap=True,
    )
    return head.address
