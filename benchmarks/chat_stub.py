"""A stub of an OpenAI-compatible chat endpoint, cheap enough for hundreds of answers per second.

Started as a process of its own (`stub_server`), it has a number of slots, each of which is busy for
a log-normal time with one request; what finds no slot waits, as in an inference server. It knows an
image by its width and height, which stand in the header of a PNG, and answers with a box that
follows from these and the question. `GET /stats` says how busy the slots were. A share of the
answers fail: 429, 503 and 500, dropped connections, and text that is no JSON. Images of one width
are always refused.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import subprocess
import sys
import time
import urllib.request
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

FAULTS = ("429", "503", "500", "dropped", "garbage")
AT_ONCE = ("429", "503")
"""Faults of a server that has no place for a request; the others come after its time."""
HEADER_END, IMAGE, TEXT = b"\r\n\r\n", b"base64,", b'"text": "'
IHDR = slice(16, 24)
"""Where a PNG holds width and height."""


@dataclass(kw_only=True)
class Stub:
    """What the server does, and what it has done."""

    slots: int = 256
    median_s: float = 0.5
    sigma: float = 0.4
    share: float = 0.0
    """Share of the requests that get a fault."""
    refused_width: int = 0
    """Images of this width are refused with 400."""
    random: random.Random = field(default_factory=random.Random)
    busy: int = 0
    busy_s: float = 0.0
    """Seconds that slots were busy, summed over them."""
    changed_at: float = field(default_factory=time.monotonic)
    answered: int = 0
    faults: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*FAULTS, "refused"), 0))
    waiting: deque[tuple[_Connection, bytes, str | None]] = field(default_factory=deque)

    def count(self, change: int) -> None:
        """Add to the number of busy slots."""
        now = time.monotonic()
        self.busy_s += self.busy * (now - self.changed_at)
        self.busy, self.changed_at = self.busy + change, now

    def stats(self) -> dict[str, Any]:
        """Everything that was counted until now."""
        self.count(0)
        return {
            "at_s": self.changed_at,
            "busy_s": self.busy_s,
            "answered": self.answered,
            "waiting": len(self.waiting),
            "faults": self.faults,
        }

    def accept(self, connection: _Connection, body: bytes) -> None:
        """Serve a chat request, now or when a slot is free."""
        fault = self.random.choice(FAULTS) if self.random.random() < self.share else None
        if fault in AT_ONCE:
            self.faults[fault] += 1
            connection.respond(int(fault), b"busy", retry_after=1 if fault == "429" else None)
        elif self.busy >= self.slots:
            self.waiting.append((connection, body, fault))
        else:
            self.begin(connection, body, fault)

    def begin(self, connection: _Connection, body: bytes, fault: str | None) -> None:
        """Occupy a slot for a while."""
        self.count(1)
        seconds = self.random.lognormvariate(0, self.sigma) * self.median_s
        asyncio.get_running_loop().call_later(seconds, self.finish, connection, body, fault)

    def finish(self, connection: _Connection, body: bytes, fault: str | None) -> None:
        """Respond, and free the slot for the next request."""
        self.count(-1)
        size, question = asked(body)
        if fault is not None:
            self.faults[fault] += 1
        if fault == "dropped":
            connection.drop()
        elif fault == "garbage":
            connection.respond(200, b"<html>garbage</html>")
        elif fault == "500":
            connection.respond(500, b"internal error")
        elif size[0] == self.refused_width:
            self.faults["refused"] += 1
            connection.respond(400, b'{"error": "too narrow"}')
        else:
            self.answered += 1
            text = json.dumps({"choices": [{"message": {"content": answer_to(size, question)}}]})
            connection.respond(200, text.encode())
        if self.waiting:
            self.begin(*self.waiting.popleft())


def asked(body: bytes) -> tuple[tuple[int, int], str]:
    """Width and height of the image in a request, and the question."""
    start = body.index(IMAGE) + len(IMAGE)
    header = base64.b64decode(body[start : start + 32])[IHDR]
    size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    text = body.rindex(TEXT) + len(TEXT)
    return size, body[text : body.index(b'"', text)].decode()


def answer_to(size: tuple[int, int], question: str) -> str:
    """The stub's answer, in thousandths: another box for every size and question."""
    digest = zlib.crc32(f"{size} {question}".encode())
    x0, y0, width, height = (100 + (digest >> shift) % 256 for shift in (0, 8, 16, 24))
    return f"[[{x0},{y0},{x0 + width},{y0 + height}]]"


class _Connection(asyncio.Protocol):
    """One keep-alive connection of HTTP/1.1, without pipelining."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._received = bytearray()
        self._length = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._length < 0:
            end = self._received.find(HEADER_END)
            if end < 0:
                return
            head = bytes(self._received[:end])
            if head.startswith(b"GET"):
                self._received.clear()
                self.respond(200, json.dumps(self._stub.stats()).encode())
                return
            lines = (line.partition(b":") for line in head.lower().split(b"\r\n"))
            lengths = [int(value) for name, _, value in lines if name == b"content-length"]
            self._length = end + len(HEADER_END) + lengths[0]
        if len(self._received) >= self._length:
            body = bytes(self._received[: self._length])
            self._received.clear()
            self._length = -1
            self._stub.accept(self, body)

    def respond(self, status: int, body: bytes, *, retry_after: int | None = None) -> None:
        """Write a response."""
        wait = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
        head = f"HTTP/1.1 {status} -\r\n{wait}Content-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)

    def drop(self) -> None:
        """End the connection without a response."""
        self._transport.abort()


@contextmanager
def stub_server(**settings: float) -> Iterator[str]:
    """The address of a stub in a process of its own, with these settings of `Stub` and `seed`."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    code = "import sys; from benchmarks.chat_stub import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


def server_stats(address: str) -> dict[str, Any]:
    """What a stub has counted so far."""
    with urllib.request.urlopen(f"{address}/stats", timeout=30) as answer:
        return json.load(answer)


async def _serve(stub: Stub) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(stub), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> int:
    """Serve until the process is killed; the first line of the output is the port."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat_stub")
    parser.add_argument("--slots", type=int, default=Stub.slots)
    parser.add_argument("--median-s", type=float, default=Stub.median_s)
    parser.add_argument("--sigma", type=float, default=Stub.sigma)
    parser.add_argument("--share", type=float, default=Stub.share)
    parser.add_argument("--refused-width", type=int, default=Stub.refused_width)
    parser.add_argument("--seed", type=int, default=0)
    settings = vars(parser.parse_args())
    stub = Stub(random=random.Random(settings.pop("seed")), **settings)
    try:
        import uvloop
    except ImportError:  # part of `serve`'s dependencies
        asyncio.run(_serve(stub))
    else:
        uvloop.run(_serve(stub))
    return 0
