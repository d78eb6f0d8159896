"""A lock between the processes of a machine that make the same thing at the same moment."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Let one process at a time run the block, with a lock on this file, which is made for it.

    Where no lock can be had, in a read-only folder or on a file system without locks, the block
    runs without one. The system releases the lock of a process that is killed.
    """
    lock = _opened(file)
    if lock is None:
        yield
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(file: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Like `locked`, with a file that exists only during the block.

    on_wait: called once with the id of the process that has the lock, if this one has to wait.
    """
    lock = _locked_file(file, on_wait)
    try:
        yield
    finally:
        if lock is not None:
            file.unlink(missing_ok=True)
            lock.close()


def _locked_file(file: Path, on_wait: Callable[[str], None]) -> IO[str] | None:
    waits = False
    while (lock := _opened(file)) is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            if not waits:
                on_wait(lock.read())
            waits = True
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            lock.close()
            return None
        if _is_at(file, lock):
            lock.truncate(0)
            lock.write(f"{os.getpid()}")
            lock.flush()
            return lock
        lock.close()  # the process before has deleted the file that this one waited for
    return None


def _opened(file: Path) -> IO[str] | None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return file.open("a+")
    except OSError:
        return None


def holders(folder: Path) -> dict[str, str]:
    """The files in a folder that `alone` holds at the moment -> the processes that hold them."""
    held = {}
    for file in sorted(folder.glob("*")):
        with suppress(OSError), file.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held[file.name] = lock.read()
    return held


def _is_at(file: Path, opened: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(opened.fileno()), file.stat())
    except FileNotFoundError:
        return False
