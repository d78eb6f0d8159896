"""Sampling the points of a search space: Optuna's samplers, or a grid.

The sampler starts from all trials that have been recorded, so that an interrupted search resumes
with the same knowledge. No point is suggested twice.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from muva.config.search_space import Range, Setting, Space, label

POPULATION = 10
"""The size of an NSGA-II generation: small enough for searches of some tens of trials."""
DRAWS = 50
"""How often a known point is drawn again before the sampler falls back to random points."""

Point = dict[str, Any]
"""Dotted setting -> value."""
Method = Literal["tpe", "nsga2", "random", "grid"]


class Sampler:
    """Suggests the points of a search one at a time, and learns from their results."""

    def __init__(
        self,
        space: Space,
        *,
        method: Method,
        objectives: Sequence[str],
        seed: int,
        trials: int,
        finished: Sequence[Mapping[str, Any]] = (),
        started: Sequence[Mapping[str, Any]] = (),
        possible: Callable[[Point], bool] = lambda point: True,
    ) -> None:
        """Start from what is known.

        Args:
            finished: records of trials (`workflows.tuning.study`).
            started: trials that were interrupted.
            possible: whether the settings of a point are consistent; others are not suggested.
        """
        self._space, self._objectives, self._trials = space, tuple(objectives), trials
        self._possible = possible
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=[StudyDirection.MAXIMIZE] * len(self._objectives),
            sampler=_sampler(method, seed=seed + len(finished)),
        )
        for record in finished:
            self._study.add_trial(self._frozen_trial(record))
        known = [*finished, *started]
        self._seen = {_key(record["params"]) for record in known}
        self._next = max((record["number"] + 1 for record in known), default=0)
        self._begun = list(started)
        self._count = len(finished)
        self._asked: dict[int, optuna.Trial] = {}
        self._grid: Iterator[Point] | None = space.points() if method == "grid" else None
        self._held: dict[int, Point] = {}
        for record in known:
            self._keep_held(record["number"], record["params"])

    def next(self) -> tuple[int, Point] | None:
        """A number and a point for the next trial; None if no more are wanted or left."""
        if self._count >= self._trials:
            return None
        if self._begun:
            record = self._begun.pop(0)
            number, point = record["number"], dict(record["params"])
            trial, _ = self._ask(point)
        else:
            drawn = self._unseen()
            if drawn is None:
                return None
            number, (trial, point) = self._next, drawn
            self._next += 1
        self._seen.add(_key(point))
        self._keep_held(number, point)
        self._count += 1
        self._asked[number] = trial
        return number, point

    def report(self, number: int, rung: int, values: Mapping[str, float]) -> None:
        """Report the progress of a running trial."""
        if len(self._objectives) == 1:
            self._asked[number].report(values[self._objectives[0]], step=rung)

    def tell(self, number: int, values: Mapping[str, float] | None, *, stopped: bool) -> None:
        """Report the result of a trial; without values, it failed."""
        trial = self._asked.pop(number)
        if values is None or (stopped and len(self._objectives) > 1):
            self._study.tell(trial, state=TrialState.FAIL)
        elif stopped:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, [values[objective] for objective in self._objectives])

    @property
    def zero(self) -> dict[str, float]:
        """The value of a failed trial: an mAP of zero."""
        return dict.fromkeys(self._objectives, 0.0)

    def notes(self, number: int) -> dict[str, Any]:
        """What the sampler stores with a running trial, as JSON: its generation."""
        frozen = self._study.get_trials(deepcopy=False)[self._asked[number].number]
        return {
            name: value for name, value in frozen.system_attrs.items() if name.startswith("NSGA")
        }

    def _unseen(self) -> tuple[optuna.Trial, Point] | None:
        if self._grid is not None:
            return self._enumerated(self._grid)
        held = self._held.get(self._next // self._space.every)
        for fixed in ([held] if held else []) + [{}]:
            for _ in range(DRAWS):
                trial, point = self._ask(fixed)
                if _key(point) not in self._seen and self._possible(point):
                    return trial, point
                self._study.tell(trial, state=TrialState.FAIL)
        return self._enumerated(self._space.points()) if self._space.finite else None

    def _enumerated(self, points: Iterator[Point]) -> tuple[optuna.Trial, Point] | None:
        unseen = next((p for p in points if _key(p) not in self._seen and self._possible(p)), None)
        return None if unseen is None else self._ask(unseen)

    def _keep_held(self, number: int, point: Point) -> None:
        held = {name: point[name] for name in self._space.held if name in point}
        if held:
            self._held.setdefault(number // self._space.every, held)

    def _ask(self, fixed: Point) -> tuple[optuna.Trial, Point]:
        """A point with these values; the sampler chooses the others."""
        if fixed:
            self._study.enqueue_trial({name: label(value) for name, value in fixed.items()})
        trial = self._study.ask()
        point: Point = {}
        for setting in self._space.settings:
            if setting.applies_to(point):
                point[setting.name] = _suggested(trial, setting)
        return trial, point

    def _frozen_trial(self, record: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
        """A record as a trial of Optuna."""
        state, metrics = TrialState.COMPLETE, record["metrics"]
        if record["state"] == "failed":
            metrics = self.zero
        elif record["state"] == "stopped":
            state = TrialState.FAIL if len(self._objectives) > 1 else TrialState.PRUNED
        distributions = {
            setting.name: distribution(setting)
            for setting in self._space.settings
            if setting.name in record["params"]
        }
        rungs = {int(rung): value for rung, value in record["rungs"].items()}
        return optuna.trial.create_trial(
            state=state,
            params={name: label(record["params"][name]) for name in distributions},
            distributions=distributions,
            values=[metrics[objective] for objective in self._objectives]
            if state == TrialState.COMPLETE
            else None,
            intermediate_values=rungs if len(self._objectives) == 1 else {},
            system_attrs=record["notes"],
        )


def distribution(setting: Setting) -> BaseDistribution:
    """The values of a setting as a distribution of Optuna."""
    values = setting.values
    if not isinstance(values, Range):
        return CategoricalDistribution(values.labels)
    if values.integer:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _suggested(trial: optuna.Trial, setting: Setting) -> Any:
    values = setting.values
    if not isinstance(values, Range):
        chosen = trial.suggest_categorical(setting.name, values.labels)
        return values.values[values.labels.index(chosen)]
    if values.integer:
        return trial.suggest_int(setting.name, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(setting.name, values.low, values.high, log=values.log)


def _sampler(method: Method, *, seed: int) -> BaseSampler:
    if method == "nsga2":
        return NSGAIISampler(population_size=POPULATION, seed=seed)
    if method == "tpe":
        with warnings.catch_warnings():  # it warns that this feature is experimental
            warnings.simplefilter("ignore")
            return TPESampler(seed=seed, constant_liar=True)
    return RandomSampler(seed=seed)


def _key(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)
