"""Named random generators: the same names give the same numbers, in any order and process.

Everything random in this package is drawn from `generator(PURPOSE, *KEYS)`. No generator is shared
between two purposes, so adding draws for one never changes another.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(purpose: str, *keys: str | int) -> np.random.Generator:
    """The generator for `purpose` and `keys` (names and non-negative integers)."""
    entropy = [_number(purpose), *map(_number, keys)]
    return np.random.default_rng(entropy)


def _number(key: str | int) -> int:
    return zlib.crc32(key.encode()) if isinstance(key, str) else int(key)
