"""A lock between the processes of a machine that make the same thing at the same moment."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process at a time run the block, with a lock on this file, which is made for it.

    Where no lock can be had, in a read-only folder or on a file system without locks, the block
    runs without one. The system releases the lock of a process that is killed.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = file.open("w")
    except OSError:
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
