"""A Ray head on this machine that outlives the command: found again, or started.

Every cluster here asks for a token (`RAY_AUTH_MODE=token`): without one, whoever reaches Ray's
ports runs code as its user. The token is Ray's own, found as Ray finds it: `RAY_AUTH_TOKEN`,
`RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`. It goes into request headers and nowhere else.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from muva.errors import MuvaError
from workflows.runtime.authentication import AUTH_MODE, RAY, authorisation, ensure_token
from workflows.runtime.local import HOST, OBJECT_STORE_BYTES, usable_port
from workflows.runtime.quirks import HEAD_ENVIRONMENT, HEAD_PORTS

USUAL_ADDRESS = f"http://{HOST}:8265"
START_S = 90.0
ANSWER_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Head:
    """A head that was started here."""

    address: str
    """Of its dashboard and Jobs API."""
    pid: int
    """Ending this process ends all of the head's."""


def find_head() -> str | None:
    """The address of a running head of ours on this machine, or None.

    Looks at the one that was started last and at Ray's usual port. Ours are those of this user that
    refuse a request without the token and take one with it: on a shared machine another person may
    listen there, who must not get the token.
    """
    for address in (_recorded_address(), USUAL_ADDRESS):
        if address is None or not _is_of_this_user(address):
            continue
        if answer(address) == 401 and answer(address, authorisation()) == 200:
            return address
    return None


def _is_of_this_user(address: str) -> bool:
    """Whether who listens there runs as this user; False where the system does not tell."""
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
def head_for_a_while() -> Iterator[str]:
    """The address of a running head of ours, else of a new one that ends with the block."""
    if address := find_head():
        yield address
        return
    head = start_head(outlives=False)
    try:
        yield head.address
    finally:
        os.kill(head.pid, signal.SIGTERM)
        os.waitpid(head.pid, 0)


def start_head(*, outlives: bool = True) -> Head:
    """Starts a head on free ports and waits until it takes jobs.

    outlives: `find_head` finds it later, and signals to this command's group do not reach it.

    The dashboard, which takes the jobs, listens at 127.0.0.1 alone. Ray opens its internal ports to
    all interfaces; they ask for the token as well.

    Raises:
        MuvaError: Ray does not start, with what it said.
    """
    ensure_token()
    port = usable_port(0)
    options = (
        f"--dashboard-host={HOST}",
        f"--dashboard-port={port}",
        "--port=0",
        f"--ray-client-server-port={usable_port(0)}",
        *HEAD_PORTS,
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        f"--temp-dir={_temporary_folder()}",
        "--disable-usage-stats",
    )
    record = _record()
    record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    said = record.with_suffix(".log")
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", *options],
            env={
                **os.environ,
                AUTH_MODE: "token",
                "PATH": _path_with_this_python(),
                **HEAD_ENVIRONMENT,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=outlives,
        )
    head = Head(address=f"http://{HOST}:{port}", pid=process.pid)
    deadline = time.monotonic() + START_S
    while answer(head.address, authorisation()) != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            last = "\n".join(said.read_text(errors="replace").strip().splitlines()[-5:])
            raise MuvaError(f"Ray did not start on this machine. The end of {said}:\n{last}")
        time.sleep(0.3)
    if outlives:
        record.write_text(json.dumps(asdict(head)))
    return head


def answer(address: str, headers: dict[str, str] | None = None) -> int | None:
    """The HTTP status of Ray's answer, or None when nothing answers."""
    request = urllib.request.Request(f"{address}/api/version", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answered:
            return answered.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except (OSError, ValueError):
        return None


def _temporary_folder() -> str:
    """One of the head's own: every `ray.init()` on this machine would join a head in the usual one.

    It is where Ray would have it, not where Python would: the paths of sockets must be short.
    """
    return tempfile.mkdtemp(prefix="muva-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))


def _path_with_this_python() -> str:
    """For jobs that say `python`: an environment need not be activated to be used."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _record() -> Path:
    """Where the last head is noted; home folders may be shared by several machines."""
    return Path.home() / ".muva" / f"ray-head-{socket.gethostname()}.json"


def _recorded_address() -> str | None:
    try:
        return json.loads(_record().read_text())["address"]
    except (OSError, ValueError, KeyError):
        return None
