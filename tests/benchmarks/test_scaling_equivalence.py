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
    Variant,
    compare,
    compare_all,
    limits_from,
    main,
    product_error,
    round_weights,
    small_model,
    table,
)


@pytest.mark.timeout(600)  # three new processes that import PyTorch: minutes on a busy machine
def test_two_workers_with_micro_batches_do_what_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = compare_all({1: (None,), 2: (3,)}, dtypes=[torch.float64], roundings=2)
    assert found.passed and (found.workers, found.micro_batch) == (2, 3)
    assert len(found.steps) >= 4 and found.moved > 1e-4 > 1e-9 > found.weights > 0
    assert 0 < max(found.limits.values()) < 1e-9
    assert set(found.steps[0]) == {
        "loss", "identity", "image_to_text", "memory", "mask", "dice", "centroids", "statistics",
    }  # fmt: skip

    file = tmp_path / "figures.json"
    for times, code in ((1.0, 0), (1e-6, 1)):
        limits = {name: times * limit for name, limit in found.limits.items()}
        one = dataclasses.replace(found, limits=limits)
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
    return compared_within(dict.fromkeys(("loss", "centroids", "weights"), 1e-4), *workers)


def compared_within(limits: dict[str, float], *workers: Trace) -> Comparison:
    variant = Variant(dtype=torch.float32, micro_batch=None)
    return compare(workers, TRACE, variant=variant, limits=limits)


def test_the_limits_are_ten_times_what_rounded_initial_weights_change() -> None:
    def rounded(loss: float, weight: float) -> Trace:
        return dataclasses.replace(
            TRACE,
            steps=[numbers(1.0), numbers(loss)],
            after={**TRACE.after, "weight": torch.full((3,), weight)},
        )

    limits = limits_from([rounded(2.5, 1.0), rounded(2.25, 1.125)], TRACE)
    # The centroids are 1 and were not changed: ten units in the last place.
    assert limits == {"loss": 5.0, "centroids": 10 * 2**-23, "weights": 1.25}
    assert compared_within(limits, TRACE).passed
    other = dataclasses.replace(
        TRACE, steps=[TRACE.steps[0], {**TRACE.steps[1], "centroids": torch.zeros(2, 2)}]
    )
    assert not compared_within(limits, other).passed


def test_rounding_moves_each_weight_by_one_unit_in_the_last_place() -> None:
    model, same = small_model(), small_model()
    round_weights(model, seed=1)
    for ours, theirs in zip(model.parameters(), same.parameters(), strict=True):
        up, down = (
            torch.nextafter(theirs, torch.full_like(theirs, s * torch.inf)) for s in (1, -1)
        )
        assert bool(((ours == up) | (ours == down)).all())


def test_products_of_reduced_precision_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < product_error() < 1
    product = torch.Tensor.__matmul__

    def reduced(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32:
            return product(left.bfloat16(), right.bfloat16()).float()
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", reduced)
    assert product_error() > 1


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
        assert "of their limits: FAIL" in table(compared(changed, changed))


def test_workers_that_differ_in_the_last_bit_are_reported() -> None:
    bit = torch.ones(2, 2)
    bit[1, 1] = torch.nextafter(bit[1, 1], torch.tensor(2.0))
    other = dataclasses.replace(TRACE, steps=[TRACE.steps[0], {**TRACE.steps[1], "centroids": bit}])
    found = compared(TRACE, other)
    assert not found.workers_alike and not found.passed
    assert "DIFFER" in table(found)
