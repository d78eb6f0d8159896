"""A cluster of two nodes with MLflow's server, started by the commands of clusters/laptop.md.

Ports are free ones, and every command stays in the foreground, so that it can be ended by its id.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pipeline_faults import alive_nodes
from tests.clusters.fields import CLUSTERS
from workflows.jobs.head import http_status
from workflows.runtime.authentication import RAY, authorisation, ensure_token
from workflows.runtime.local import HOST, usable_port

START_S = 120.0
SMALL = (
    "--block",
    "--object-store-memory=100000000",
    "--min-worker-port=0",
    "--max-worker-port=0",
)
POSTGRES_USER = "postgres"
PASSWORD = "of-this-test-alone"


@dataclass(frozen=True, kw_only=True)
class TwoNodes:
    """Where the cluster is."""

    address: str
    tracking_uri: str
    database: str
    """postgresql or sqlite."""


def page_commands() -> list[str]:
    """The first block of the page, in which everything is started, a command a line."""
    text = (CLUSTERS / "laptop.md").read_text()
    block = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0]
    return block.splitlines()


@contextmanager
def two_nodes(home: Path, environment: Mapping[str, str]) -> Iterator[TwoNodes]:
    """The cluster, for the length of the block; the environment is that of its processes."""
    ensure_token()
    ports = {"6379": usable_port(0), "8265": usable_port(0), "5000": usable_port(0)}
    lines = [
        re.sub(r"\b(6379|8265|5000)\b", lambda found: str(ports[found.group()]), line)
        for line in page_commands()
    ]
    nodes = [
        line.replace("--temp-dir=/tmp", f"--temp-dir={home}").split()[2:]
        for line in lines
        if line.startswith("ray start")
    ]
    (server,) = [line.removesuffix("&") for line in lines if " mlflow server " in line]
    address = f"http://{HOST}:{ports['8265']}"
    tracking_uri = f"http://{HOST}:{ports['5000']}"
    inherited = {**os.environ, **environment, "RAY_AUTH_MODE": "token"}
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        server_command = _server(server, inherited, database)
        processes = [stack.enter_context(_process(*server_command, home / "mlflow.log"))]
        for index, options in enumerate(nodes):
            command = [*RAY, "start", *options, *SMALL]
            if "--head" in options:
                command.append(f"--ray-client-server-port={usable_port(0)}")
            said = home / f"node-{index}.log"
            processes.append(stack.enter_context(_process(command, inherited, said)))
            _wait(lambda: http_status(address, authorisation()) == 200, said)
        _wait(lambda: alive_nodes(address) == len(nodes), home / "node-1.log")
        _wait(lambda: http_status(tracking_uri) is not None, home / "mlflow.log")
        kind = "postgresql" if database else "sqlite"
        try:
            yield TwoNodes(address=address, tracking_uri=tracking_uri, database=kind)
        finally:
            for process in processes:  # at once: each takes its seconds to end
                process.terminate()


def _server(
    line: str, inherited: Mapping[str, str], database: str | None
) -> tuple[list[str], dict[str, str]]:
    """The page's command for MLflow, or that for PostgreSQL, which the page tells too."""
    words = shlex.split(os.path.expandvars(line))
    own = dict(word.split("=", 1) for word in words[: words.index("mlflow")])
    words = words[words.index("mlflow") :]
    Path.home().joinpath(".muva", "mlflow").mkdir(parents=True)
    if database is not None:
        words = [word for word in words if not word.startswith("--backend-store-uri")]
        own["MLFLOW_BACKEND_STORE_URI"] = database
    return [RAY[0], "-m", *words], {**inherited, **own}


@contextmanager
def postgres() -> Iterator[str | None]:
    """The address of a PostgreSQL database; None where PostgreSQL or its driver is missing."""
    programs = [shutil.which(name) for name in ("initdb", "pg_ctl", "createdb")]
    if not all(programs) or importlib.util.find_spec("psycopg") is None:
        yield None
        return
    user = POSTGRES_USER if os.geteuid() == 0 else None  # it does not start as root
    port = usable_port(0)
    text = (CLUSTERS / "laptop.md").read_text()
    with tempfile.TemporaryDirectory(prefix="mvpg", dir="/tmp") as folder:
        if user is not None:
            shutil.chown(folder, user=user)
        secret = Path(folder, "password")
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        commands = [
            shlex.split(line.replace("$HOME", folder).replace("5433", str(port)))
            for line in re.findall(r"^(?:initdb|pg_ctl|createdb) .*$", text, re.MULTILINE)
        ]
        environment = {**os.environ, "PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8"}
        Path(folder, ".muva").mkdir()
        if user is not None:
            shutil.chown(Path(folder, ".muva"), user=user)
        data = f"{folder}/.muva/postgres"
        try:
            for words in commands:
                asked = [f"--pwfile={secret}" if word == "--pwprompt" else word for word in words]
                subprocess.run(
                    asked,
                    env=environment,
                    check=True,
                    stdout=subprocess.DEVNULL,
                    cwd=folder,
                    timeout=60,
                    user=user,
                )
            yield f"postgresql+psycopg://mlflow:{PASSWORD}@{HOST}:{port}/mlflow"
        finally:
            stop = ["pg_ctl", f"--pgdata={data}", "--mode=immediate", "--wait", "stop"]
            subprocess.run(stop, check=False, stdout=subprocess.DEVNULL, cwd=folder, user=user)


@contextmanager
def _process(
    command: list[str], environment: Mapping[str, str], said: Path
) -> Iterator[subprocess.Popen]:
    with said.open("wb") as log:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for ending in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, ending)
                process.wait(20)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def _wait(there: Callable[[], bool], said: Path) -> None:
    ends_at = time.monotonic() + START_S
    while not there():
        assert time.monotonic() < ends_at, said.read_text()[-3000:]
        time.sleep(0.3)
