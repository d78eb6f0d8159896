"""The speed check fails when a size is too slow, and only then."""

import json

import pytest

from benchmarks import render as benchmark
from muva.synthetic import DOMAINS


@pytest.mark.parametrize(("goal", "code"), [(1e-3, 0), (1e9, 1)])
def test_check_compares_with_the_goal(monkeypatch, tmp_path, capsys, goal, code):
    file = tmp_path / "figures.json"
    monkeypatch.setattr(benchmark, "GOALS", {(32, 16): goal})
    monkeypatch.setattr(benchmark, "WORLD_GOAL", goal)
    monkeypatch.setattr(benchmark, "WORLD_NETWORKS", 1)
    monkeypatch.setattr(benchmark, "WORLD_PEOPLE", 2)
    monkeypatch.setattr(benchmark, "DOMAINS", {"syn-campus": DOMAINS["syn-campus"]})
    monkeypatch.setattr("sys.argv", ["render", "--people", "1", "--check", "--json", str(file)])
    assert benchmark.main() == code
    rates = json.loads(file.read_text())["images_per_s_and_core"]
    assert rates["32 x 16"]["syn-campus"] > 0
    assert "| 32 x 16 | syn-campus |" in capsys.readouterr().out
