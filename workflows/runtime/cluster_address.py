"""The address of a cluster that is gone, found out before Ray waits for it.

`ray.init` and the Jobs client retry for more than seven minutes, and no public setting bounds that.
Ray 2.60.
"""

from __future__ import annotations

import os
import socket
import time
import urllib.parse

from muva.errors import MuvaError, SettingsError

WITHIN_S = 10.0
"""How long to retry: a head that is just being started may not listen yet."""
_ANSWER_S = 5.0
_RETRY_S = 0.5
_RAY_CLIENT = "ray://"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
"""What a client of HTTP/2, on which gRPC is based, sends first: RFC 9113 3.4, and no settings."""
_FRAME_HEADER_BYTES, _SETTINGS = 9, 4
"""Size of the header of a frame; the type in its fourth byte that a server must send first."""


def check_responds(address: str, *, variable: str = "RAY_ADDRESS") -> None:
    """Check that a Ray cluster may listen at HOST:PORT (or `ray://HOST:PORT`).

    Raises:
        SettingsError: the address has another form.
        MuvaError: nothing responds, or something that is no Ray cluster.
    """
    shown = f"{variable}={address}"
    host, port = _parts(address, shown)
    ends_at = time.monotonic() + WITHIN_S
    while True:
        try:
            _greet(host, port)
            return
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            if time.monotonic() > ends_at or not refused:
                raise MuvaError(
                    f"{shown}: no Ray cluster responds there ({error.strerror or error}). Expected "
                    "the address of a running head, HOST:6379 by default. Start the cluster, or "
                    f"unset {variable} to use this machine alone"
                ) from error
        time.sleep(_RETRY_S)


def _parts(address: str, shown: str) -> tuple[str, int]:
    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"{shown}: this is the address of a dashboard, to which `muva submit` sends commands. "
            "Expected HOST:PORT of the head, by default HOST:6379, or no address"
        )
    parts = urllib.parse.urlsplit(f"//{address.removeprefix(_RAY_CLIENT)}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise SettingsError(f"{shown}: expected HOST:PORT of a Ray head, for example 10.0.0.5:6379")
    return host, port


def _greet(host: str, port: int) -> None:
    """Raise OSError unless a server of gRPC listens there."""
    with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
            return  # it says nothing before the handshake of TLS
        connection.sendall(_PREFACE)
        answer = b""
        while len(answer) < _FRAME_HEADER_BYTES:
            received = connection.recv(_FRAME_HEADER_BYTES - len(answer))
            if not received:
                break
            answer += received
    if len(answer) < _FRAME_HEADER_BYTES or answer[3] != _SETTINGS:
        raise OSError("another program listens at this port")
