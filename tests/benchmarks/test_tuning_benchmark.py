from __future__ import annotations

import pytest

from benchmarks.tuning import compared, missing


def test_missed_goals_are_named() -> None:
    met = {
        "reuse": {"saved": 0.6},
        "concurrency": {"of_sequential": 0.6},
    }
    assert missing(met) == []
    assert missing({}) == []
    reuse, concurrency = missing({"reuse": {"saved": 0.59}, "concurrency": {"of_sequential": 0.61}})
    assert "0.59" in reuse
    assert "0.61" in concurrency


def test_a_search_without_gain_misses_no_goal() -> None:
    assert missing({"study": {"held_out": {"gain": -0.01}}}) == []


def test_the_gain_is_shown_with_the_deviation_between_seeds() -> None:
    found = compared({"default": [0.25, 0.125], "best": [0.5, 0.25]})
    assert found["gain"] == pytest.approx(0.1875)
    assert found["default"]["deviation"] == pytest.approx(0.0884)
    assert compared({"default": [0.5], "best": [0.5]})["best"]["deviation"] is None
