"""`muva ui`: MLflow's pages in a browser, served to this machine alone."""

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
from workflows.verb import json_option, print_result

START_S = 90.0
STOP_S = 10.0


@click.command("ui")
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="MUVA_HOME",
    default="runs",
    show_default=True,
    help="Folder of everything that is kept here.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    help="MLflow: sqlite:///FILE or http://SERVER. [sqlite in HOME]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="0 takes any that is free.",
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
        told = f"The runs are on a server already: {home_link(address)}"
        print_result({"address": redact(address)}, as_json=as_json, text=told)
        return
    # The server's processes would outlive a verb that is simply ended.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with mlflow_server(address, port=port) as (server, process):
        links = experiment_links(address, server)
        lines = [f"MLflow: {home_link(server)}", *(f"  {name}: {links[name]}" for name in links)]
        told = {"address": server, "experiments": links}
        print_result(told, as_json=as_json, text="\n".join(lines))
        console.print("Ctrl-C stops it; the runs stay.")
        try:
            code = process.wait()
        except KeyboardInterrupt:
            console.print("Stopped.")
            return
    raise MuvaError(f"MLflow's server ended by itself with exit code {code}.")


@contextmanager
def mlflow_server(tracking_uri: str, *, port: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """MLflow's server over a database while the block runs: its address, and its process.

    Raises:
        MuvaError: there is no database, the port is in use, or the server does not start.
    """
    from tracking.uris import sqlite_file
    from workflows.runtime.local import HOST, usable_port

    file = sqlite_file(tracking_uri)
    if file is not None and not file.exists():
        raise MuvaError(
            f"No runs at {file}: expected the MLflow database that the first run makes. Start with "
            "`make demo`, or name another place with --home or --tracking-uri."
        )
    port = usable_port(port)
    with tempfile.TemporaryFile() as log:
        where = (f"--host={HOST}", f"--port={port}", "--workers=1")
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where],
            env={**os.environ, **_server_environment(tracking_uri, file)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait_for_answer(process, port, log)
            yield f"http://{HOST}:{port}", process
        finally:
            _stop(process)


def _server_environment(tracking_uri: str, file: Path | None) -> dict[str, str]:
    """The settings in the environment: a database's password would show among the processes."""
    settings = {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri,
        # No helper processes for evaluations by language models.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    if file is not None:
        settings["MLFLOW_ARTIFACTS_DESTINATION"] = (file.parent / "mlartifacts").as_uri()
    return settings


def _wait_for_answer(process: subprocess.Popen, port: int, log: IO[bytes]) -> None:
    from workflows.runtime.local import HOST

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)
    said = redact(log.read().decode(errors="replace")).strip().splitlines()[-5:]
    state = "did not answer" if process.returncode is None else f"ended with {process.returncode}"
    raise MuvaError(f"MLflow's server at port {port} {state}. It said:\n" + "\n".join(said))


def _stop(process: subprocess.Popen) -> None:
    """Ends the server with its workers, which share its session."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
            process.wait(STOP_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
