"""`tests.data.benchmarks.trees` as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from muva.data.records import Record
from tests.data.benchmarks import trees


@pytest.fixture
def tree() -> Callable[[Path, Mapping[str, Iterable[str]]], Path]:
    """Creates small grey images below a root, from folder -> file names."""
    return trees.tree


@pytest.fixture
def image_labels() -> Callable[[Iterable[Record]], set[tuple]]:
    """The labels of records, as a set."""
    return trees.image_labels
