"""Starts the service on a Ray cluster, and ends it when it is interrupted."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from ray import serve
from ray.serve.schema import ApplicationStatus

from muva.errors import MuvaError
from workflows.progress import say
from workflows.serving.application import NAME, application
from workflows.serving.settings import ServeSettings

REQUEST_S = 120.0
_CHECK_S = 2.0


@contextmanager
def served(settings: ServeSettings, *, host: str, port: int) -> Iterator[None]:
    """Run the service during the block, on the cluster that this process is connected to.

    At the end, requests that are under way are answered first.

    Raises:
        MuvaError: the service does not become ready.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # One proxy, here: with the default, one would listen on each node. gRPC stays off, as no
    # function for it is given, and so does HAProxy, which only a variable turns on. Ray Serve 2.60.
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": host, "port": port, "request_timeout_s": REQUEST_S},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    try:
        deploy(settings)
        yield
    finally:
        # Ray 2.60 prints that the controller, which is asked to end, has ended before it answered.
        with redirect_stdout(io.StringIO()):
            serve.shutdown()


def is_served() -> bool:
    """Whether the cluster runs the service already."""
    return NAME in serve.status().applications


def deploy(settings: ServeSettings) -> None:
    """Deploy the service, or its new settings, and wait until all of it runs.

    A service that runs already changes to them without losing a request.

    Raises:
        MuvaError: it does not become ready.
    """
    try:
        serve.run(application(settings), name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise MuvaError(f"The service did not start: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    status = serve.status().applications.get(NAME)
    if status is None:
        return str(error)
    messages = [one.message for one in status.deployments.values() if one.message]
    return " ".join([*messages, status.message or str(error)])


def wait(stopped: threading.Event) -> None:
    """Wait until the service is stopped, and report when it is not running meanwhile."""
    running = True
    while not stopped.wait(_CHECK_S):
        status = serve.status().applications.get(NAME)
        if status is None:
            raise MuvaError("The service was deleted from the cluster by another command.")
        now = status.status == ApplicationStatus.RUNNING
        if now != running:
            say("The service is complete again." if now else f"The service is {status.status}.")
        running = now
