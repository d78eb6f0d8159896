from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import scaling_equivalence
from benchmarks.scaling_equivalence import (
    KEYS,
    Comparison,
    Trace,
    compare,
    compare_all,
    main,
    table,
)


@pytest.mark.timeout(600)  # three new processes that import PyTorch: minutes on a busy machine
def test_two_workers_with_micro_batches_do_what_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = compare_all({1: (None,), 2: (3,)}, dtypes=[torch.float64])
    assert found.passed and (found.workers, found.micro_batch) == (2, 3)
    assert len(found.steps) >= 4 and found.moved > 1e-4 > 1e-9 > found.weights > 0
    assert set(found.steps[0]) == {
        "loss", "identity", "image_to_text", "memory", "mask", "dice", "centroids", "statistics",
    }  # fmt: skip

    file = tmp_path / "figures.json"
    for limit, code in ((1e-9, 0), (0.0, 1)):
        one = dataclasses.replace(found, limit=limit)
        monkeypatch.setattr(scaling_equivalence, "compare_all", lambda one=one: [one])
        assert main(["--check", "--json", str(file)]) == code
    assert main([]) == 0
    assert json.loads(file.read_text())[0]["steps"] == found.steps
    assert "float64, 2 workers, micro-batches of 3" in capsys.readouterr().out


def numbers(value: float) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(value), "centroids": torch.ones(2, 2)}


TRACE = Trace(
    steps=[numbers(1.0), numbers(2.0)],
    before={"weight": torch.zeros(3), f"block{KEYS}": torch.zeros(3)},
    after={"weight": torch.ones(3), f"block{KEYS}": torch.ones(3)},
)


def compared(*workers: Trace) -> Comparison:
    return compare(workers, TRACE, dtype=torch.float32, micro_batch=None)


def test_which_differences_are_checked() -> None:
    same = compared(TRACE, TRACE)
    assert same.passed and same.moved == 1 and same.weights == 0

    keys = dataclasses.replace(TRACE, after={**TRACE.after, f"block{KEYS}": torch.zeros(3)})
    assert compared(keys, keys).passed and compared(keys).key_biases == 1
    weights = dataclasses.replace(TRACE, after={**TRACE.after, "weight": torch.full((3,), 1.001)})
    step = dataclasses.replace(TRACE, steps=[numbers(1.0), numbers(2.001)])
    broken = dataclasses.replace(TRACE, steps=[numbers(1.0), numbers(float("nan"))])
    for changed in (weights, step, broken):
        assert not compared(changed, changed).passed
        assert "limit 1e-04: FAIL" in table(compared(changed, changed))


def test_workers_that_differ_in_the_last_bit_are_reported() -> None:
    bit = torch.ones(2, 2)
    bit[1, 1] = torch.nextafter(bit[1, 1], torch.tensor(2.0))
    other = dataclasses.replace(TRACE, steps=[TRACE.steps[0], {**TRACE.steps[1], "centroids": bit}])
    found = compared(TRACE, other)
    assert not found.workers_alike and not found.passed
    assert "DIFFER" in table(found)
