from __future__ import annotations

import pytest
import torch

from benchmarks import training


def test_a_cpu_runs_only_the_settings_that_it_supports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(training, "best_device", lambda name=device: torch.device(name))
        shown[device] = training.settings_here()
    assert shown["cuda"] == list(training.SETTINGS)
    assert set(shown["cuda"]) - set(shown["cpu"]) == {
        "fp16", "CUDA graphs", "CUDA graphs, float32", "CUDA graphs, compile"
    }  # fmt: skip
