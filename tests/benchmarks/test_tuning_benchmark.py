from __future__ import annotations

from typing import Any

import pytest

from benchmarks.tuning import compared, missing


def test_bounds_that_are_missed_are_named() -> None:
    met = {
        "reuse": {"saved": 0.6},
        "concurrency": {"of_sequential": 0.6},
        "study": {"held_out": {"gain": 0.01}},
    }
    assert missing(met) == []
    assert missing({}) == []
    missed: dict[str, Any] = {
        "reuse": {"saved": 0.59},
        "concurrency": {"of_sequential": 0.61},
        "study": {"held_out": {"gain": 0.0}},
    }
    told = missing(missed)
    assert [word in line for word, line in zip(("0.59", "0.61", "+0.0"), told, strict=True)] == [
        True
    ] * 3


def test_the_gain_stands_beside_the_deviation_between_seeds() -> None:
    found = compared({"default": [0.25, 0.125], "best": [0.5, 0.25]})
    assert found["gain"] == pytest.approx(0.1875)
    assert found["default"]["deviation"] == pytest.approx(0.0884)
    assert compared({"default": [0.5], "best": [0.5]})["best"]["deviation"] is None
