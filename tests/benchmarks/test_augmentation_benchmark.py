"""The benchmark of augmentation: its goal, its table, and that both sides do the same work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import augmentation as benchmark
from muva.config import AugmentationConfig
from muva.config.augmentation import STRENGTHS
from muva.data.augmentation import augmented
from muva.data.augmentation_draws import draw_augmentations


@pytest.mark.parametrize(("goal", "code"), [(1e-3, 0), (1e9, 1)])
def test_check_compares_with_the_goal(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    goal: float,
    code: int,
) -> None:
    file = tmp_path / "found.json"
    for name, value in {"GOAL": goal, "SIZES": ((32, 16),), "ROUND_S": 0.01}.items():
        monkeypatch.setattr(benchmark, name, value)
    words = ["augmentation", "--rounds", "2", "--check", "--json", str(file)]
    monkeypatch.setattr("sys.argv", words)
    assert benchmark.main() == code
    found = json.loads(file.read_text())["32 x 16"]
    assert found.keys() == {*benchmark.TITLES.values(), benchmark.TOGETHER}
    assert all(rate > 0 for of_both in found.values() for rate in of_both.values())
    assert "| 32 x 16 | JPEG |" in capsys.readouterr().out
    [table] = benchmark.baseline_tables({"32 x 16": found}).values()
    assert table.rows[-1]["goal"] == goal


def test_every_augmentation_is_measured() -> None:
    assert set(benchmark.TITLES) == set(benchmark.EVERYTHING) == set(STRENGTHS)


@pytest.mark.parametrize("name", [name for name in STRENGTHS if name != "erase"])
def test_torchvision_does_nearly_the_same(name: str) -> None:
    pixels = benchmark._people(32, 16)[:8]
    seeds = np.arange(8)
    changes: dict[str, Any] = {name: benchmark._always(name)}
    if name == "pad":
        changes = {"pad": 5}
    if name == "jitter":
        changes["hue"] = 0  # of which torchvision has another definition
    settings = AugmentationConfig(**changes)
    ours, _ = augmented(pixels, seeds, settings)
    draws = draw_augmentations(seeds, settings, height=32, width=16)
    for number, image in enumerate(torch.from_numpy(pixels).permute(0, 3, 1, 2)):
        theirs = benchmark.by_torchvision(image, draws, number).permute(1, 2, 0).numpy()
        difference = np.abs(theirs.astype(int) - ours[number]).mean()
        # Its sharpening blurs with another kernel, its interpolation is bilinear.
        assert difference < (12 if name in ("sharpen", "low_resolution") else 2), name
        assert np.abs(pixels[number].astype(int) - ours[number]).mean() > 0
