"""The lines of `benchmarks.gpu` run here with small sizes, each in its own process."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks import gpu


def ran(name: str, *, seconds: float = 300) -> dict[str, Any]:
    return gpu.ran(name, small=True, ends_at=time.monotonic() + seconds)


def test_a_setting_is_measured_as_a_share_of_the_product() -> None:
    found = ran("CUDA graphs at 64")
    assert found["batch"] == 8
    assert found["steps_share"] > 0 and found["features_share"] > 0
    shares = found["steps_share"] / found["features_share"]
    rates = found["steps_per_s"] / found["features_per_s"]
    assert shares == pytest.approx(3 * rates, rel=0.1), "a step is three times the operations"


def test_exports_give_the_features_of_the_model() -> None:
    found = ran("exports")
    assert found["torchscript"] < 1e-4 and found["onnx"] < 1e-4


def test_a_step_takes_three_times_the_operations_of_the_feature_pass() -> None:
    work = gpu.operations(gpu.Sizes(small=True))
    assert work["step"] == pytest.approx(3 * work["features"], rel=0.1)


def test_a_line_without_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.subprocess, "Popen", None)
    assert ran("exports", seconds=10) == {"not_run": "no time left"}


def test_a_line_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST_S", 0)
    started_at = time.monotonic()
    assert "not finished" in ran("exports", seconds=0.5)["not_run"]
    assert time.monotonic() - started_at < 10


def test_a_line_that_fails_says_why_and_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--an-option-that-there-is-not")
    found = ran("tests")
    assert "an-option-that-there-is-not" in found["failed"]
    assert gpu.misses({"device": "one", "small": True, "tests": found}) == [
        f"tests: {found['failed']}"
    ]


def test_goals_are_for_the_best_setting() -> None:
    lines = {"a": {"steps_share": 0.2, "features_share": 0.6}, "b": {"steps_share": 0.39}}
    found = {"device": "one", "small": False, **lines}
    assert gpu.misses(found) == ["steps share: at most 0.39, expected 0.4"]
    found["c"] = {"steps_share": 0.41}
    assert gpu.misses(found) == []
