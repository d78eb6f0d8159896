"""The memory of a process without mapped files, whose pages can be dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak_memory_mb() -> Iterator[list[float]]:
    """Peak anonymous and shared memory of this process inside the block, in a list."""
    peak = [memory_mb()]

    def check() -> None:
        peak[0] = max(peak[0], memory_mb())

    with again_and_again(check, every_s=0.05):
        yield peak


@contextmanager
def again_and_again(check: Callable[[], None], *, every_s: float) -> Iterator[None]:
    """Call a function repeatedly in a separate thread inside the block."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            check()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def memory_mb(process: Path = Path("/proc/self")) -> float:
    """RssAnon + RssShmem of a process, in 10^6 bytes; 0 when it has ended."""
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0.0
    kib = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))]
    return sum(kib) * 1024 / 1e6
