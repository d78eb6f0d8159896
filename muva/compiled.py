"""Functions that Numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator like `numba.njit`, whose code is cached on disk where that is possible.

    Numba refuses to cache where neither the package's folder nor the user's cache folder can be
    written to, as in containers that run with an arbitrary user id. There, each process compiles
    anew. Numba 0.68.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return decorate
