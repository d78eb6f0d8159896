"""Ray Tune runs the trials of a search; results are saved as they arrive.

Only the driver writes: a trial's record to the store and its run to MLflow, as soon as the trial
ends. A driver that is killed loses only the trials that were running, and not their finished steps,
which are artifacts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from muva.config import TuneConfig
from muva.errors import MuvaError
from workflows.progress import Track, say, track
from workflows.runtime.claims import SharedSteps, UsedStep
from workflows.runtime.cluster import cpus, gpus, ray_cluster
from workflows.runtime.quirks import TRIAL_RESOURCES, TUNE_ENVIRONMENT, exit_soon
from workflows.runtime.workers import Workers
from workflows.session import Session
from workflows.tuning.report import short
from workflows.tuning.sampler import Sampler
from workflows.tuning.search import Search, log_trial, wanted_trials
from workflows.tuning.study import Record, Study, record_of
from workflows.tuning.trial import (
    TrialInputs,
    TrialProgress,
    epochs_by_rung,
    grounding_key,
    objectives_of,
    run_trial,
    rungs_of,
    trial_config,
)

GRACE_PARTS = 4
"""No trial is stopped during this fraction (one of so many parts) of its first training."""
MAX_CONCURRENT = 8
"""Concurrent trials on a cluster without GPUs, unless the settings say otherwise: each trial holds
the images of its sources in memory."""


def concurrency(settings: TuneConfig, workers: Workers) -> tuple[int, Workers]:
    """How many trials run at once on this cluster, and the workers of each, which fit on it.

    A trial itself holds no CPU, and never two groups of workers at the same time, so that trials
    wait only for trials that compute.
    """
    wanted = settings.concurrent_trials
    if wanted is None:
        cores = workers.count * (workers.cpus_each or 1)
        room = gpus() // workers.count if workers.use_gpu else min(cpus() // cores, MAX_CONCURRENT)
        wanted = max(1, min(room, settings.trials))
    share = cpus() // (workers.count * wanted)
    workers = dataclasses.replace(workers, cpus_each=workers.cpus_each or max(1, share))
    workers.check()
    return wanted, workers


def run_trials(
    session: Session,
    study: Study,
    chosen: Search,
    inputs: TrialInputs,
    finished: Sequence[Record],
) -> None:
    """Run trials until there are as many as wanted, or the budget is spent."""
    settings = chosen.settings
    for name, value in TUNE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    deadline = _Deadline(settings.budget_hours)
    wanted = wanted_trials(chosen)
    with ray_cluster(), track(f"tune {inputs.config.name}") as progress:
        concurrent, workers = concurrency(settings, inputs.workers)
        shared = SharedSteps()
        inputs = dataclasses.replace(
            inputs,
            workers=workers,
            session=dataclasses.replace(inputs.session, shared=shared),
        )
        sampler = Sampler(
            chosen.space,
            method=settings.search,
            objectives=chosen.objectives,
            seed=inputs.config.seed,
            trials=wanted,
            finished=finished,
            started=study.begun(),
            possible=chosen.possible,
        )
        before = {record["number"]: record for record in finished}
        searcher = _Searcher(session, study, sampler, inputs, chosen, deadline, progress, before)
        results = ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(_trial, inputs=inputs, settings=settings),
                TRIAL_RESOURCES,
            ),
            tune_config=ray_tune.TuneConfig(
                metric=chosen.objectives[0],
                mode="max",
                num_samples=wanted,
                max_concurrent_trials=concurrent,
                search_alg=searcher,
                scheduler=_scheduler(settings, inputs),
                # A new process for each trial: that of a stopped trial ends with its workers.
                reuse_actors=settings.scheduler == "none",
            ),
            run_config=ray_tune.RunConfig(
                name=f"{study.artifact.name}-{uuid.uuid4().hex[:8]}",
                storage_path=str(session.home / "tune"),
                verbose=0,
                stop=deadline,
            ),
        ).fit()
    if searcher.running and not deadline.passed():
        raise KeyboardInterrupt  # after Ctrl-C, Ray Tune returns as if it had finished
    if results.num_errors:
        raise MuvaError(
            f"{results.num_errors} of {len(results)} trials failed; the first: "
            f"{str(results.errors[0]).strip().splitlines()[-1]}. What the others finished is kept; "
            "the same command resumes the search"
        )
    if deadline.passed() and len(study.finished()) < wanted:
        say(
            f"The {settings.budget_hours:g} h are over with {len(study.finished())} of {wanted} "
            "trials; the same command resumes those that were running"
        )


def _scheduler(settings: TuneConfig, inputs: TrialInputs) -> TrialScheduler | None:
    """The scheduler, which stops trials that are worse than others at the same epoch."""
    grace = max(1, epochs_by_rung(inputs.config, settings) // GRACE_PARTS)
    rungs = rungs_of(inputs.config, settings, len(inputs.sources))
    if settings.scheduler == "asha":
        return ASHAScheduler(time_attr="rung", max_t=rungs, grace_period=grace, reduction_factor=2)
    if settings.scheduler == "median":
        return MedianStoppingRule(time_attr="rung", grace_period=grace, min_samples_required=3)
    return None


def _trial(point: Mapping[str, Any], *, inputs: TrialInputs, settings: TuneConfig) -> None:
    """One trial, in a process of its own."""
    shared = inputs.session.shared
    assert shared is not None
    shared.used.clear()  # of the trial that this process ran before
    params = point["params"]
    for step in _given(inputs, settings, params):
        shared.note(step.label, step.address, step.seconds)

    def report(progress: TrialProgress) -> None:
        steps = [dataclasses.asdict(step) for step in shared.used]
        content = {"progress": dataclasses.asdict(progress), "steps": steps}
        metrics = progress.metrics
        if progress.failed is not None:  # Tune insists on the metric, and its scheduler compares
            metrics = dict.fromkeys(objectives_of(settings, [s.name for s in inputs.sources]), 0.0)
        # As text, for Tune would make a metric of each number in it.
        ray_tune.report({**metrics, "rung": progress.rung, "progress": json.dumps(content)})

    try:
        run_trial(params, inputs=inputs, settings=settings, report=report)
    except SystemExit:  # Tune stops the trial
        if settings.scheduler != "none":
            exit_soon()
        raise


def _reported(result: Mapping[str, Any]) -> tuple[TrialProgress, list[UsedStep]]:
    """The progress that `_trial` reported."""
    content = json.loads(result["progress"])
    return TrialProgress(**content["progress"]), [UsedStep(**step) for step in content["steps"]]


def _given(inputs: TrialInputs, settings: TuneConfig, params: Mapping[str, Any]) -> list[UsedStep]:
    """The data sets and labels that a trial gets as inputs, and would otherwise have to make."""
    config = trial_config(inputs.config, settings, params)
    labels = inputs.labels[grounding_key(config.grounding)] if config.model.parts else ()
    steps = []
    for artifact in (*inputs.sources, *labels):
        manifest = artifact.manifest()
        assert manifest is not None
        took_s = manifest["seconds"] or 0.0
        steps.append(UsedStep(label=artifact.name, address=artifact.address, seconds=took_s))
    return steps


class _Deadline(ray_tune.Stopper):
    """Ends a search after some hours, measured by a monotonic clock."""

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = math.inf if hours is None else clock() + 3600 * hours

    def passed(self) -> bool:
        """Whether the budget is spent."""
        return self._clock() >= self._ends_at

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return self.passed()

    def stop_all(self) -> bool:
        """Called by Ray Tune between results."""
        return self.passed()


class _Searcher(Searcher):
    """Ray Tune's searcher: suggests points for trials, and saves their results."""

    def __init__(
        self,
        session: Session,
        study: Study,
        sampler: Sampler,
        inputs: TrialInputs,
        chosen: Search,
        deadline: _Deadline,
        progress: Track,
        before: Mapping[int, Record],
    ) -> None:
        super().__init__(metric=chosen.objectives[0], mode="max")
        self._session, self._study, self._sampler = session, study, sampler
        self._objectives, self._deadline, self._progress = chosen.objectives, deadline, progress
        self._wanted = wanted_trials(chosen)
        self._records = dict(before)
        self.running: dict[str, tuple[int, dict[str, Any]]] = {}
        self._rungs: dict[str, dict[int, float]] = {}
        self._show()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Nothing to set: all of them are known from the start."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The point of a new trial."""
        drawn = None if self._deadline.passed() else self._sampler.next()
        if drawn is None:
            return Searcher.FINISHED
        number, params = drawn
        self._study.begin(number, params)
        self.running[trial_id] = drawn
        self._rungs[trial_id] = {}
        return {"number": number, "params": params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the progress at a rung."""
        if _reported(result)[0].failed is not None:
            return
        number, _ = self.running[trial_id]
        self._rungs[trial_id][result["rung"]] = result[self._objectives[0]]
        self._sampler.report(number, result["rung"], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Save the record of a trial that is complete or was stopped."""
        number, params = self.running.pop(trial_id)
        rungs = self._rungs.pop(trial_id)
        if error or not result or "progress" not in result:
            self._sampler.tell(number, None, stopped=False)
            return
        progress, steps = _reported(result)
        if self._deadline.passed() and progress.state == "stopped":
            self._sampler.tell(number, None, stopped=False)
            return
        if progress.failed is not None:
            say(f"Trial {number}, {short(params)}: {progress.failed}")
        elif progress.rung not in rungs:  # the last report of a trial arrives only here
            rungs[progress.rung] = progress.metrics[self._objectives[0]]
            self._sampler.report(number, progress.rung, progress.metrics)
        record = record_of(
            number,
            params,
            progress,
            steps=steps,
            rungs=rungs,
            notes=self._sampler.notes(number),
        )
        values = progress.metrics if progress.failed is None else self._sampler.zero
        self._sampler.tell(number, values, stopped=progress.state == "stopped")
        self._study.finish(record)
        self._records[number] = record
        log_trial(self._session, self._study, record)
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing to pickle: after a crash, the searcher is restored from the store."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a resumed search starts from the records in the store."""

    def _show(self) -> None:
        done = list(self._records.values())
        values = [r["metrics"][self._objectives[0]] for r in done if r["state"] == "complete"]
        note = f"best {self._objectives[0]} {100 * max(values):.1f}" if values else ""
        self._progress.update(len(done), self._wanted, note=note)
