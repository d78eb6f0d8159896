"""Ports on this machine."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from muva.errors import MuvaError
from workflows.runtime.local import HOST, usable_port


def test_a_port_in_use_is_named_with_a_free_one() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(MuvaError, match=rf"Port {port} of {HOST} is in use .*--port \d+"):
            usable_port(port)


@pytest.mark.parametrize(
    ("port", "number", "remedy"),
    [
        (80, errno.EACCES, "Choose a port above 1023"),
        (5000, errno.EADDRNOTAVAIL, "loopback interface"),
        (0, errno.EADDRNOTAVAIL, "loopback interface"),
    ],
)
def test_a_port_that_cannot_be_opened_is_not_said_to_be_in_use(
    port: int, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(MuvaError, match=f"{os.strerror(number)}. .*{remedy}"):
        usable_port(port)
