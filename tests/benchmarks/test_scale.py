"""What very many images take, against calculations by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.paper import Rates
from benchmarks.scale import Alone, costs, limits, main, measured_alone, shares_of
from muva.config import load_recipe

RATES = Rates(
    device="a card",
    precision="bf16",
    per_s={"features": 100, "prompts": 50, "memory": 80, "steps": 20, "embedding": 90},
    peak_mb={64: 9000.0},
)


def test_hours_and_prices_are_those_of_a_calculation_by_hand() -> None:
    shares = shares_of(load_recipe("base"), RATES, images=3_600_000, grounding_rate=10)
    hours = {share.phase: share.hours for share in shares}
    assert hours == {
        "grounding": 100,
        "features": 10,
        "prompts": pytest.approx(120 * 900_000 / 50 / 3600),
        "memory": 60 * 12.5,
        "steps": 60 * 50,
        "embedding": pytest.approx(3_600_000 / 90 / 3600),
    }
    printed = costs(shares, RATES, price=2.5)
    assert "| steps | 216,000,000 | 20.0 | 3,000 | 7,500 |" in printed
    assert "| steps | 216,000,000 | 20.0 | 3,000 | ? |" in costs(shares, RATES, price=None)


def test_the_work_of_one_process_is_scaled_proportionally() -> None:
    printed = limits([Alone(what="import", images=1000, seconds=36, peak_mb=5)], images=1_000_000)
    assert "| import | 36.0 | 5 | 10.0 | 5 |" in printed
    assert "Shards: 977 of 1024 images or fewer." in printed


def test_the_parts_are_measured_through_the_librarys_own_functions() -> None:
    found = measured_alone(load_recipe("base"), images=400, identities=100)
    assert [one.what.partition(":")[0] for one in found] == ["import", "training", "training"]
    assert all(one.seconds > 0 and one.images == 400 for one in found)


def test_both_tables_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phases: dict[str, dict[str, float | None]] = {
        name: {"per_s": rate} for name, rate in RATES.per_s.items()
    }
    phases["steps"] |= {"gpu_peak_mb": None, "peak_mb": 9000.0}
    rates, written = tmp_path / "rates.json", tmp_path / "scale.json"
    device = {"device": "a card", "precision": "bf16", "batch": 64}
    rates.write_text(json.dumps({**device, "phases": phases}))
    words = ["--images", "3600000", "--identities", "100", "--sample", "400"]
    monkeypatch.setattr(
        sys, "argv", ["scale", *words, "--rates", f"{rates}", "--json", f"{written}"]
    )
    assert main() == 0
    assert "One a card, bf16:" in capsys.readouterr().out
    assert json.loads(written.read_text())["phases"]["steps"]["hours"] == pytest.approx(3000)
