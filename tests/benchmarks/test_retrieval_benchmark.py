"""The benchmark of retrieval: its dense way is an oracle of ours, and its goals are those told."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import retrieval

SMALL = retrieval.Work(queries=40, gallery=300, people=25, cameras=3, dense=True, most_mb=1e9)


def test_the_dense_method_and_ours_give_the_same_map_below_one(tmp_path: Path) -> None:
    retrieval.make_features(SMALL, tmp_path)
    dense, ours = (way(SMALL, tmp_path) for way in (retrieval._dense, retrieval._ours))
    assert ours == pytest.approx(dense, abs=1e-9)
    assert 0.1 < ours < 0.999


def test_only_a_value_beyond_its_goal_is_missed() -> None:
    good = {
        "product": {"seconds": 1.0, "peak_mb": 400.0, "mean_ap": float("nan"), "times": 1.0},
        "dense": {"seconds": 4.0, "peak_mb": 1900.0, "mean_ap": 0.5, "times": 4.0},
        "ours": {"seconds": 0.9, "peak_mb": 900.0, "mean_ap": 0.5, "times": 0.9},
        "float32": {"seconds": 1.1, "peak_mb": 900.0, "mean_ap": 0.5, "times": 1.1},
    }
    assert retrieval.misses("market1501", good) == []
    for name, value, expected in (
        ("times", 1.01, "ours: 1.01 times the product, goal 1.0"),
        ("peak_mb", 1001.0, "1001 MB, goal 1000"),
        ("mean_ap", 0.51, "the dense way 0.5000000"),
    ):
        (missed,) = retrieval.misses("market1501", {**good, "ours": {**good["ours"], name: value}})
        assert expected in missed
    slower = {**good, "float32": {**good["float32"], "times": 1.21}}
    (missed,) = retrieval.misses("market1501", slower)
    assert "ours, in float32: 1.21 times the product, goal 1.2" in missed
    verified = {"seconds": 1.6, "peak_mb": 900.0, "mean_ap": 0.5, "times": 2.1}
    assert retrieval.misses("market1501", {**good, "verified": verified}) == []
    for name, value, expected in (
        ("seconds", 1.7, "1.55 times as long as ranking alone, goal 1.5"),
        ("peak_mb", 1001.0, "1001 MB with verification, goal 1000"),
    ):
        (missed,) = retrieval.misses("market1501", {**good, "verified": {**verified, name: value}})
        assert expected in missed
    slow = {**good, "ours": {**good["ours"], "seconds": 1801.0}}
    assert retrieval.misses("msmt17-reranked", slow) == ["msmt17-reranked: 1801 s, goal 1800"]
