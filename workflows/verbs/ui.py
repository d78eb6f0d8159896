"""`muva ui`: serves MLflow's user interface to this machine alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from muva.errors import MuvaError
from tracking.redaction import redact
from workflows.progress import console
from workflows.verb import home_option, json_option, print_result, tracking_option

START_S = 90.0
STOP_S = 10.0
OTHER_SERVERS = (
    *("MLFLOW_HOST", "MLFLOW_PORT", "MLFLOW_WORKERS", "MLFLOW_GUNICORN_OPTS"),
    *("MLFLOW_UVICORN_OPTS", "MLFLOW_STATIC_PREFIX", "MLFLOW_EXPOSE_PROMETHEUS"),
    *("MLFLOW_SERVE_ARTIFACTS", "MLFLOW_ARTIFACTS_ONLY", "MLFLOW_ARTIFACTS_DESTINATION"),
    *("MLFLOW_DEFAULT_ARTIFACT_ROOT", "MLFLOW_TRACE_ARCHIVAL_CONFIG"),
    *("MLFLOW_BACKEND_STORE_URI", "MLFLOW_READ_REPLICA_BACKEND_STORE_URI"),
    *("MLFLOW_REGISTRY_STORE_URI", "MLFLOW_WORKSPACE_STORE_URI"),
    *("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"),
    *("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "MLFLOW_SERVER_X_FRAME_OPTIONS"),
)
"""The variables of the options of `mlflow server`.

They are meant for another server: here they would change what is served, and to whom.
"""


@click.command("ui")
@home_option
@tracking_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="The server's port; 0 chooses any free one.",
)
@json_option
def ui_verb(home: Path, tracking_uri: str | None, port: int, as_json: bool) -> None:
    """Browse the results in MLflow.

    \b
    muva ui
    muva ui --port 5001
    """
    from tracking.ui import experiment_links, home_link
    from tracking.uris import absolute_uri

    address = absolute_uri(tracking_uri or f"sqlite:///{home.absolute() / 'mlflow.db'}")
    if address.startswith("http"):
        text = f"A server already serves the runs: {home_link(address)}"
        print_result({"address": redact(address)}, as_json=as_json, text=text)
        return
    # Without this, the server's processes would outlive a verb that is terminated.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with mlflow_server(address, port=port) as (server, process):
        links = experiment_links(address, server)
        lines = [f"MLflow: {home_link(server)}", *(f"  {name}: {links[name]}" for name in links)]
        data = {"address": server, "experiments": links}
        print_result(data, as_json=as_json, text="\n".join(lines))
        console.print("Stop the server with Ctrl-C; the runs are kept.")
        try:
            code = process.wait()
        except KeyboardInterrupt:
            console.print("Stopped.")
            return
    raise MuvaError(f"MLflow's server exited unexpectedly with exit code {code}.")


@contextmanager
def mlflow_server(tracking_uri: str, *, port: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """Runs MLflow's server for a database during the block; yields its address and its process.

    Raises:
        MuvaError: the database does not exist, the port is in use, or the server does not start.
    """
    from tracking.connection import reached_client
    from tracking.uris import sqlite_file
    from workflows.runtime.local import HOST, usable_port

    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        raise MuvaError(
            f"No runs at {file}: expected the MLflow database that the first run creates. Start "
            "with `make demo`, or name another place with --home or --tracking-uri."
        )
    reached_client(tracking_uri, writes=False)
    port = usable_port(port)
    with tempfile.TemporaryFile() as log:
        where = (f"--host={HOST}", f"--port={port}", "--workers=1")
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where],
            env=_server_environment(tracking_uri, file),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_until_ready(process, port, log)
            yield f"http://{HOST}:{port}", process
        finally:
            _stop(process)


def _server_environment(tracking_uri: str, file: Path | None) -> dict[str, str]:
    """Settings as environment variables: arguments would show a database's password to others."""
    settings = {name: value for name, value in os.environ.items() if name not in OTHER_SERVERS}
    settings |= {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri,
        "PYTHONSAFEPATH": "1",  # nothing is imported from the current folder
        # No helper processes for evaluations by language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if file is not None:
        settings["MLFLOW_ARTIFACTS_DESTINATION"] = (file.parent / "mlartifacts").as_uri()
    return settings


def _wait_until_ready(process: subprocess.Popen, port: int, log: IO[bytes]) -> None:
    from workflows.runtime.local import HOST

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    last = redact(log.read().decode(errors="replace")).strip().splitlines()[-5:]
    state = "did not respond" if process.returncode is None else f"exited with {process.returncode}"
    raise MuvaError(f"MLflow's server on port {port} {state}. Its last output:\n" + "\n".join(last))


def _stop(process: subprocess.Popen) -> None:
    """Stops the server and its workers, which share its process session."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
            process.wait(STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
