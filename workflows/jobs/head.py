"""Finds or starts a Ray head on this machine that outlives the command.

Every such cluster requires a token (`RAY_AUTH_MODE=token`): without one, anyone who can reach Ray's
ports can run code as its user. The token is Ray's own, from where Ray looks for it:
`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`. It is sent in request headers and
stored nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from muva.errors import MuvaError
from muva.file_lock import locked
from muva.proxies import carries_in_clear
from tracking.redaction import redact
from workflows.runtime.authentication import AUTH_MODE, RAY, authorisation, ensure_token
from workflows.runtime.autoscaling import WAIT_LIMIT_VARIABLE
from workflows.runtime.local import (
    HOST,
    OBJECT_STORE_BYTES,
    check_processes,
    delete_ray_folder,
    new_ray_folder,
    node_resources,
    usable_port,
)
from workflows.runtime.quirks import HEAD_ENVIRONMENT, HEAD_PORTS

DEFAULT_ADDRESS = f"http://{HOST}:8265"
PASSED_VARIABLES = (
    *("MUVA_HOME", "MUVA_STORE", "MLFLOW_TRACKING_URI", "MUVA_PEOPLE"),
    WAIT_LIMIT_VARIABLE,
)
"""Environment variables that jobs get with their values where they are submitted."""
_READ_BY_JOBS = ("AWS_", "HF_", "MLFLOW_", "MUVA_")
"""Prefixes of the variables that verbs and their libraries read: credentials, addresses."""
START_S = 90.0
TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head that was started on this machine."""

    address: str
    """The address of its dashboard and Jobs API."""
    pid: int
    """Ending this process ends all processes of the head."""
    folder: str = ""
    """Ray's folder, with the logs of jobs; the next start of a head deletes it."""


def find_head() -> str | None:
    """The address of this user's running head on this machine, or None.

    Tries the head that was started last, then Ray's default port. A head counts only if this user
    runs it, and if it refuses requests without the token and accepts them with it: on a shared
    machine another user may listen on the port, who must not get the token.
    """
    recorded = _recorded_head()
    for address in (recorded and recorded.address, DEFAULT_ADDRESS):
        if address is None or not _belongs_to_this_user(address):
            continue
        if http_status(address) == 401 and http_status(address, authorisation()) == 200:
            return address
    return None


def _belongs_to_this_user(address: str) -> bool:
    """Whether this user's process listens at the address; False if the system does not say."""
    port = urllib.parse.urlsplit(address).port
    try:
        listeners = [
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
        ]
        users = {psutil.Process(pid).uids().real if pid else None for pid in listeners}
    except psutil.Error:
        return False
    return users == {os.getuid()}


@contextmanager
def temporary_head() -> Iterator[str]:
    """The address of this user's running head, else of a new one that ends with the block."""
    if address := find_head():
        yield address
        return
    head = start_head(outlives=False)
    try:
        yield head.address
    finally:
        os.kill(head.pid, signal.SIGTERM)
        os.waitpid(head.pid, 0)
        delete_ray_folder(head.folder)


def start_head(*, outlives: bool = True) -> Head:
    """Starts a head on free ports and waits until it accepts jobs.

    outlives: the head outlives this command. `find_head` finds it later, and signals to this
    command's process group do not reach it.

    The dashboard, which accepts the jobs, listens on 127.0.0.1 alone. Ray opens its internal ports
    on all interfaces; they require the token too.

    Raises:
        MuvaError: Ray does not start; the message contains Ray's last output.
    """
    check_processes()
    ensure_token()
    _delete_folder_of_dead_head()
    folder = new_ray_folder()
    port = usable_port(0)
    options = (
        f"--dashboard-host={HOST}",
        f"--dashboard-port={port}",
        "--port=0",
        f"--ray-client-server-port={usable_port(0)}",
        *HEAD_PORTS,
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        *(f"--{name.replace('_', '-')}={value}" for name, value in node_resources().items()),
        # Its own folder, because every `ray.init()` would join a head in Ray's default folder.
        f"--temp-dir={folder}",
        "--disable-usage-stats",
    )
    record = _record()
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_file = record.with_suffix(".log")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *options],
            env={
                **_environment_of_head(),
                AUTH_MODE: "token",
                "PATH": _path_with_this_python(),
                **HEAD_ENVIRONMENT,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=outlives,
        )
    head = Head(address=f"http://{HOST}:{port}", pid=process.pid, folder=folder)
    deadline = time.monotonic() + START_S
    while http_status(head.address, authorisation()) != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            delete_ray_folder(folder)
            last = "\n".join(log_file.read_text(errors="replace").strip().splitlines()[-5:])
            raise MuvaError(f"Ray did not start on this machine. The end of {log_file}:\n{last}")
        time.sleep(0.3)
    if outlives:
        written = record.with_suffix(".new")
        written.write_text(json.dumps(asdict(head)))
        written.replace(record)
    return head


def http_status(address: str, headers: dict[str, str] | None = None) -> int | None:
    """The HTTP status of Ray's response, or None if nothing responds.

    Without https no proxy is used, which could read the token in the headers.
    """
    proxies = {} if carries_in_clear(address) else None
    try:
        request = urllib.request.Request(f"{address}/api/version", headers=headers or {})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
        with opener.open(request, timeout=TIMEOUT_S) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):  # the last: no server of HTTP
        return None


def _environment_of_head() -> dict[str, str]:
    """The environment without what each job gets from the command that submits it.

    Jobs inherit the head's environment: a variable that a later command does not set would have the
    value that it had when the head was started. Values with secrets are not sent with jobs, and so
    have to be the head's.
    """
    return {name: value for name, value in os.environ.items() if not _is_passed(name)}


def _delete_folder_of_dead_head() -> None:
    head = _recorded_head()
    if head is not None and head.folder and not psutil.pid_exists(head.pid):
        delete_ray_folder(head.folder)


def stale_variables(address: str) -> tuple[list[str], int]:
    """Names of variables that have other values in this machine's head, and its process id.

    Jobs get the head's values: those of the command that started it. Only variables that a command
    reads are compared. Empty for any other cluster, and where the system does not tell.
    """
    head = _recorded_head()
    if head is None or head.address != address:
        return [], 0
    try:
        theirs = psutil.Process(head.pid).environ()
    except psutil.Error:
        return [], 0
    names = {name for name in {*theirs, *os.environ} if name.startswith(_READ_BY_JOBS)}
    own = (name for name in names if not _is_passed(name))
    return sorted(name for name in own if theirs.get(name) != os.environ.get(name)), head.pid


def _is_passed(name: str) -> bool:
    value = os.environ.get(name, "")
    return name in PASSED_VARIABLES and redact(value) == value


def _path_with_this_python() -> str:
    """PATH with this environment first, so that jobs that run `python` use it unactivated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def starting_one_at_a_time() -> AbstractContextManager[None]:
    """A block that one command of this account at a time runs, to find a head or start one."""
    return locked(_record().with_suffix(".lock"))


def _record() -> Path:
    """The file that records the last head; several machines may share a home folder."""
    return Path.home() / ".muva" / f"ray-head-{socket.gethostname()}.json"


def _recorded_head() -> Head | None:
    try:
        written = json.loads(_record().read_text())
        return Head(
            address=str(written["address"]),
            pid=int(written["pid"]),
            folder=str(written.get("folder", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
