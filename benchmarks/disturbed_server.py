"""A proxy for an HTTP server that injects faults: errors, delays and dropped connections, from a
seed.

The upstream server answers every request that reaches it in full. A connection may be dropped
before the request is forwarded, or in the middle of the response, after the server has done its
work.
"""

from __future__ import annotations

import http.client
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

DISTURBANCES = ("500", "503", "slow", "cut before", "cut within")
SLOW_S = 0.5
_HOP = {"connection", "transfer-encoding", "keep-alive"}
"""Hop-by-hop headers, which are not forwarded."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore disconnected clients: the benchmark kills them on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Disturber:
    """Decides for each request which fault to inject; `share` of the requests get one."""

    def __init__(self, *, seed: int, share: float) -> None:
        self.share = share
        self.disturbed: dict[str, int] = dict.fromkeys(DISTURBANCES, 0)
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def next(self) -> str | None:
        """One of `DISTURBANCES`, or None."""
        with self._lock:
            if self._rng.random() >= self.share:
                return None
            chosen = self._rng.choice(DISTURBANCES)
            self.disturbed[chosen] += 1
            return chosen


@contextmanager
def disturbed_server(upstream: str, disturber: Disturber, *, missing: str = "") -> Iterator[str]:
    """The address of a proxy for `upstream`, `http://HOST:PORT`, inside the `with` block.

    missing: requests whose path contains this get 404, as from a server without these endpoints.
    """
    host = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            what = disturber.next()
            if missing and missing in self.path:
                what = "404"
            if what in ("404", "500", "503"):
                self.send_response(int(what))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if what == "slow":
                time.sleep(SLOW_S)
            if what == "cut before":
                self.close_connection = True
                return
            connection = http.client.HTTPConnection(host, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP | {"content-length", "date", "server"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if what == "cut within":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 required by http.server

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: the benchmark prints a table."""

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
