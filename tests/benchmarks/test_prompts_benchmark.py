from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import prompts
from benchmarks.prompts import CLOSE, compare, main, table


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TEXT_WIDTH": 64, "TEXT_LAYERS": 2, "EMBED_DIM": 16, "NAMED": 12}.items():
        monkeypatch.setattr(prompts, name, value)


def test_ours_takes_the_plain_loops_step_and_less_time(small: None) -> None:
    figures = compare(torch.tensor([3, 3, 3, 0, 7, 7, 0, 3, 1]), turns=3)
    assert (figures["identities"], figures["entries"]) == (4, 9)
    assert max(figures["apart"].values()) < CLOSE
    assert figures["times"] > 1
    assert "| ours | fp32 |" in table(figures)


def test_too_slow_or_another_step_is_an_error(
    small: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr("sys.argv", ["prompts", "--check", "--turns", "1", "--json", f"{file}"])
    for needed, close, code in ((0.0, CLOSE, 0), (1e9, CLOSE, 1), (0.0, -1.0, 1)):
        monkeypatch.setattr(prompts, "NEEDED", needed)
        monkeypatch.setattr(prompts, "CLOSE", close)
        assert main() == code
        assert json.loads(file.read_text())["entries"] == 32
