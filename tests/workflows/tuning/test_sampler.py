from __future__ import annotations

import random
from typing import Any

import pytest

from muva.config import ExperimentConfig, load_recipe
from muva.config.search_space import Space, conflict, space_for
from muva.errors import SettingsError
from workflows.tuning.sampler import Method, Sampler

SMALL = {
    "model.gating": ["offline", "online"],
    "model.mask_max_value": {"choice": [1, 10], "when": {"model.gating": "online"}},
    "stage2.mask_loss": ["bce+dice", "mse"],
}


@pytest.fixture(scope="module")
def demo() -> ExperimentConfig:
    return load_recipe("demo")


def records(
    points: Sampler, *, objectives: tuple[str, ...], most: int = 1000
) -> list[dict[str, Any]]:
    """So many trials with chance values; each third is stopped, each fifth has failed."""
    made = []
    values_of = random.Random(0)
    while len(made) < most and (drawn := points.next()) is not None:
        number, params = drawn
        values = {objective: values_of.random() for objective in objectives}
        points.report(number, 1, values)
        state = ("complete", "complete", "stopped")[number % 3] if number % 5 != 4 else "failed"
        made.append(
            {
                "number": number,
                "params": params,
                "state": state,
                "metrics": values if state != "failed" else {},
                "rungs": {"1": values[objectives[0]]},
                "notes": points.notes(number),
            }
        )
        reported = values if state != "failed" else points.zero
        points.tell(number, reported, stopped=state == "stopped")
    return made


def keys(made: list[dict[str, Any]]) -> list[str]:
    return [repr(sorted(record["params"].items(), key=str)) for record in made]


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random", "grid"])
@pytest.mark.parametrize("trials", [1, 4, 50])
def test_points_differ_and_are_all_there_are_at_most(
    method: Method, trials: int, demo: ExperimentConfig
) -> None:
    space = space_for(SMALL, demo)
    points = Sampler(space, method=method, objectives=("a",), seed=3, trials=trials)
    made = keys(records(points, objectives=("a",)))
    assert len(set(made)) == len(made) == min(trials, 6)
    assert set(made) <= {repr(sorted(point.items(), key=str)) for point in space.points()}


@pytest.mark.parametrize("method", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("objectives", [("a",), ("a", "b")])
def test_a_search_that_was_cut_off_goes_on_with_what_it_began(
    method: Method, objectives: tuple[str, ...], demo: ExperimentConfig
) -> None:
    space = space_for("masks", demo)
    first = records(
        Sampler(space, method=method, objectives=objectives, seed=0, trials=20),
        objectives=objectives,
        most=15,
    )
    again = Sampler(
        space,
        method=method,
        objectives=objectives,
        seed=0,
        trials=20,
        finished=first[:13],
        started=first[13:],
    )
    later = records(again, objectives=objectives)
    assert [r["number"] for r in later] == list(range(13, 20))
    assert keys(later[:2]) == keys(first[13:])
    assert len(set(keys(first + later[2:]))) == 20


def test_slow_settings_keep_their_values(demo: ExperimentConfig) -> None:
    space = space_for("masks", demo)
    made = records(
        Sampler(space, method="tpe", objectives=("a",), seed=0, trials=25), objectives=("a",)
    )
    slow = [str([record["params"][name] for name in space.held]) for record in made]
    assert [len(set(slow[start : start + 10])) for start in (0, 10, 20)] == [1, 1, 1]
    assert len(set(slow)) > 1


def test_a_sampler_that_learns_finds_better_points_than_chance(demo: ExperimentConfig) -> None:
    space = space_for({"stage2.lr": {"range": [1e-6, 1e-2], "log": True}}, demo)

    def best(method: Method, seed: int) -> float:
        points = Sampler(space, method=method, objectives=("a",), seed=seed, trials=40)
        values = []
        while (drawn := points.next()) is not None:
            number, params = drawn
            values.append(-abs(params["stage2.lr"] - 2e-4))
            points.tell(number, {"a": values[-1]}, stopped=False)
        return max(values)

    learned, chance = ([best(method, seed) for seed in range(5)] for method in ("tpe", "random"))
    assert sum(learned) > sum(chance)


def test_a_range_has_no_grid(demo: ExperimentConfig) -> None:
    space: Space = space_for("masks", demo)
    with pytest.raises(SettingsError, match="is a range, which cannot be enumerated"):
        Sampler(space, method="grid", objectives=("a",), seed=0, trials=3).next()


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_settings_that_do_not_go_together_are_not_tried(
    method: Method, demo: ExperimentConfig
) -> None:
    """Part tokens as bands: the demo's grid has 16 rows, or 21 with the smaller stride."""
    rows = {8: 16, 6: 21}
    space = space_for("masks", demo)
    points = Sampler(
        space,
        method=method,
        objectives=("a",),
        seed=0,
        trials=60,
        possible=lambda point: not conflict(point, demo),
    )
    made = records(points, objectives=("a",))
    assert len(made) == 60
    bands = [one["params"] for one in made if one["params"]["model.part_token_init"] == "patch_avg"]
    assert bands
    for params in bands:
        assert rows[params["model.stride"]] % len(params["model.parts"]) == 0
    reason = conflict({"model.part_token_init": "patch_avg"}, demo)
    assert "16 rows do not divide by 3" in reason
