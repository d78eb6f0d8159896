"""What the benchmarks of faults share: options, drivers that can be killed, and an S3 server."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.baseline import benchmark_parser

PATIENCE_S = 240.0
"""How long a driver may take until it is disturbed, and then until it ends."""


def round_arguments(
    name: str, description: str | None, *, check: str, driver_words: int
) -> argparse.Namespace:
    """The options of a benchmark that runs rounds.

    `drive` is for its own drivers: the words that a `Driver` was given, or None.
    """
    parser = benchmark_parser(name, description, check=check)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=driver_words, help=argparse.SUPPRESS)
    return parser.parse_args()


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is deleted afterwards, whatever killed processes still write into it."""
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def wrong_rounds(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rounds with a wrong result, by number."""
    return [f"round {number}" for number, one in enumerate(rounds) if not one["right"]]


class TooLateError(Exception):
    """The driver finished before the fault was injected."""


class Driver:
    """`--drive WORDS` of a benchmark, in a process group of its own, with its standard error."""

    def __init__(self, benchmark: str, address: str, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{benchmark}", "--drive", *words],
            env={**os.environ, "RAY_ADDRESS": address},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        self._lines.extend(self._process.stderr)

    def lines(self) -> list[str]:
        """Its output so far."""
        return list(self._lines)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; raises TooLateError if the driver succeeds before."""
        ends_at = time.monotonic() + PATIENCE_S
        while not condition():
            if self._process.poll() == 0:
                raise TooLateError
            if self._process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(f"the driver could not be disturbed: {self._end()}")
            time.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL to all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def finish(self) -> None:
        """Wait until it ends; raises RuntimeError if it fails or hangs."""
        try:
            code = self._process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = f"no end within {PATIENCE_S:.0f} s"
        if code:
            raise RuntimeError(f"the driver failed ({code}): {self._end()}")

    def _end(self) -> str:
        return "".join(self._lines)[-3000:]


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server with the S3 API."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_environment(address: str) -> dict[str, str]:
    """The environment variables with which boto3 uses that server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
