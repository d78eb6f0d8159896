"""docs/method.md names functions: they are there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "method.md"
NAMED = sorted(set(re.findall(r"`(muva(?:\.\w+)+\.\w+)`", PAGE.read_text(encoding="utf-8"))))


def test_the_page_names_where_each_equation_is() -> None:
    assert len(NAMED) > 20


@pytest.mark.parametrize("name", NAMED)
def test_what_the_page_names_is_there_and_explained(name: str) -> None:
    module, _, thing = name.rpartition(".")
    found = getattr(importlib.import_module(module), thing)
    assert found.__doc__
