"""Random generators by name: the same words give the same numbers, in any order and process.

Everything random in this package is drawn from `generator("what it is for", *whose)`. No generator
is shared between two things, so drawing one never moves another.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(purpose: str, *keys: str | int) -> np.random.Generator:
    """The generator of `purpose` for `keys` (names, and whole numbers from 0)."""
    entropy = [_number(purpose), *map(_number, keys)]
    return np.random.default_rng(entropy)


def _number(key: str | int) -> int:
    return zlib.crc32(key.encode()) if isinstance(key, str) else int(key)
