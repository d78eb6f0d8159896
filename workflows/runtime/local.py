"""Ports, shared memory, cores and folders for Ray and the servers that are started here."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

from muva.errors import MuvaError
from muva.short_folders import SOCKET_BYTES, private_short_folder
from workflows.runtime.available import (
    machine_memory_bytes,
    usable_cpus,
    usable_memory_bytes,
    usable_processes,
)
from workflows.runtime.quirks import RAY_SOCKET

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 256 * 1024**2
"""Sufficient for what the verbs pass through it: references, reports, small tables."""

_FOLDER_VARIABLE = "RAY_TMPDIR"
_PREFIX, _WITHIN = "muva-ray-", "r"
_PROCESSES = 300
"""The processes and threads of a Ray on two cores with two workers."""
_OVERHEAD_BYTES, _OVERHEAD_SHARE = 10**9, 0.25
"""What is left to the driver and to Ray's own processes, and at most this share of all memory."""


def node_resources() -> dict[str, int]:
    """What Ray may use of this machine, by the names of Ray's options.

    Ray itself counts all cores and the whole memory of the machine. Ray 2.60.
    """
    resources = {"num_cpus": usable_cpus()}
    usable = usable_memory_bytes()
    if usable < machine_memory_bytes():
        overhead = min(_OVERHEAD_BYTES, int(_OVERHEAD_SHARE * usable))
        resources["memory"] = max(1, usable - overhead - OBJECT_STORE_BYTES)
    return resources


def check_processes() -> None:
    """Check that Ray's processes and threads are allowed: Ray itself is aborted where they are not.

    Raises:
        MuvaError: fewer are allowed than a small Ray has.
    """
    allowed = usable_processes()
    if allowed is not None and allowed < _PROCESSES:
        raise MuvaError(
            f"This account or container may have {allowed} processes and threads, and Ray needs "
            f"{_PROCESSES} or more. Raise the limit: `ulimit -u`, or the container's pids limit"
        )


def ray_start_options() -> list[str]:
    """The options of `ray start` for a node that is to have what `node_resources` counts."""
    usable = {**node_resources(), "object_store_memory": OBJECT_STORE_BYTES}
    return [f"--{name.replace('_', '-')}={value}" for name, value in usable.items()]


def default_ray_folder() -> str | None:
    """The folder that Ray uses by default, or None if it cannot.

    Either its sockets do not fit below it, or another account has created it for itself.
    """
    parent = os.environ.get(_FOLDER_VARIABLE) or os.environ.get("TMPDIR") or "/tmp"
    folder = Path(parent) / "ray"
    is_short = len(os.fsencode(folder)) + len(RAY_SOCKET) <= SOCKET_BYTES
    writable = os.access(folder if folder.exists() else parent, os.W_OK | os.X_OK)
    return str(folder) if is_short and writable else None


def new_ray_folder() -> str:
    """A new folder for one Ray, of this user alone, with a path that is short enough for sockets.

    It is in the folder that RAY_TMPDIR names, or in /tmp: the folders of batch systems, which
    TMPDIR names, often have long paths. Its parent is private, because Ray lets everyone write to
    its own folder; `delete_ray_folder` deletes both.

    Raises:
        MuvaError: RAY_TMPDIR is too long, or no folder can be written to.
    """
    chosen = os.environ.get(_FOLDER_VARIABLE)
    private = private_short_folder(
        len(f"/{_WITHIN}{RAY_SOCKET}"),
        prefix=_PREFIX,
        preferred=chosen or "/tmp",
        only=bool(chosen),
        variable=_FOLDER_VARIABLE,
    )
    return f"{private}/{_WITHIN}"


def delete_ray_folder(folder: str) -> None:
    """Delete a folder of `new_ray_folder`; any other is left alone."""
    private = Path(folder).parent
    if Path(folder).name == _WITHIN and private.name.startswith(_PREFIX):
        shutil.rmtree(private, ignore_errors=True)


def usable_port(port: int) -> int:
    """The port if nothing on this machine listens on it; for 0, a free one.

    Raises:
        MuvaError: the port is in use, or cannot be opened by this account or on this machine.
    """
    try:
        return _bound_port(port)
    except OSError as error:
        if port and error.errno == errno.EADDRINUSE:
            raise MuvaError(
                f"Port {port} of {HOST} is in use ({error.strerror}). Choose another one, for "
                f"example --port {_bound_port(0)}, or end the program that listens there."
            ) from error
        remedy = (
            "Choose a port above 1023, which every account may use, or 0 for a free one"
            if error.errno == errno.EACCES
            else "Expected this machine's loopback interface to be up, with that address"
        )
        raise MuvaError(
            f"Port {port} of {HOST} cannot be opened: {error.strerror or error}. {remedy}."
        ) from error


def _bound_port(port: int) -> int:
    with socket.socket() as probe:
        # As servers do it: a port whose last connection has just been closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return probe.getsockname()[1]


if __name__ == "__main__":  # for scripts that run `ray start` themselves
    print(*ray_start_options())
