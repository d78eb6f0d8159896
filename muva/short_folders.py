"""Temporary folders whose path is short enough for Unix sockets.

The path of a Unix socket has at most 107 bytes (unix(7)). Batch systems set TMPDIR to folders whose
path alone is almost as long, and Ray and multiprocessing put sockets several folders below it.
"""

from __future__ import annotations

import os
import tempfile

from muva.errors import MuvaError

SOCKET_BYTES = 107
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def short_folder(below_bytes: int, *, preferred: str, variable: str, only: bool = False) -> str:
    """The preferred folder if sockets fit below it, otherwise a usual temporary folder.

    Args:
        below_bytes: length of the longest path below the folder, with the slash before it.
        preferred: the folder to use if its path is short enough.
        variable: the environment variable that sets this folder.
        only: raise an error instead of using another folder.

    Raises:
        MuvaError: no folder can be used.
    """
    longest = SOCKET_BYTES - below_bytes
    for folder in (preferred, *(() if only else _SHORT_FOLDERS)):
        if len(os.fsencode(folder)) <= longest and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise MuvaError(
        f"{variable}={preferred}: expected an existing, writable folder whose path has at most "
        f"{longest} bytes, because the path of a socket below it must not exceed {SOCKET_BYTES}. "
        "Set it to a folder with a shorter path on this machine's own disk"
    )


def private_short_folder(
    below_bytes: int, *, prefix: str, preferred: str, variable: str, only: bool = False
) -> str:
    """A new folder of this user alone, below that of `short_folder`; the caller deletes it."""
    name_bytes = len(f"/{prefix}12345678")
    parent = short_folder(
        below_bytes + name_bytes, preferred=preferred, variable=variable, only=only
    )
    return tempfile.mkdtemp(prefix=prefix, dir=parent)
