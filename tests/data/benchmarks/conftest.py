"""`tests.data.benchmarks.trees` as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from muva.data.records import Record
from tests.data.benchmarks import trees


@pytest.fixture
def tree() -> Callable[[Path, Mapping[str, Iterable[str]]], Path]:
    """Makes small grey images below a root, from folder -> file names."""
    return trees.tree


@pytest.fixture
def told() -> Callable[[Iterable[Record]], set[tuple]]:
    """What records say of their images."""
    return trees.told
