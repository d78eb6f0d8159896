"""Memory that the C library keeps for the next batch instead of returning it to the system.

Tensors of a batch are larger than the size from which glibc takes memory from the system for each
allocation and returns it at once. Each step then pays for thousands of page faults, which on many
machines take longer than the arithmetic of a small model.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
_NEVER_TRIMMED = 2**31 - 1
_DEFAULTS = ((_MMAP_MAX, 65536), (_TRIM_THRESHOLD, 128 * 1024))
_ENVIRONMENT = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block, freed memory stays with the process; afterwards it is returned.

    It changes nothing where the C library is not glibc, or where the environment already has
    settings of its own for it.
    """
    library = _glibc()
    if library is None or any(name in os.environ for name in _ENVIRONMENT):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NEVER_TRIMMED)
    try:
        yield
    finally:
        for parameter, value in _DEFAULTS:
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
