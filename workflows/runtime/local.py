"""Ports on 127.0.0.1 and shared memory, for Ray and the servers that are started here."""

from __future__ import annotations

import socket

from muva.errors import MuvaError

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 256 * 1024**2
"""Sufficient for what the verbs pass through it: references, reports, small tables."""


def usable_port(port: int) -> int:
    """The port if nothing on this machine listens on it; for 0, a free one.

    Raises:
        MuvaError: the port is in use.
    """
    try:
        return _bound_port(port)
    except OSError as error:
        raise MuvaError(
            f"Port {port} of {HOST} is in use ({error.strerror}). Choose another one, for example "
            f"--port {_bound_port(0)}, or end the program that listens there."
        ) from error


def _bound_port(port: int) -> int:
    with socket.socket() as probe:
        # As servers do it: a port whose last connection has just been closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
        return probe.getsockname()[1]
