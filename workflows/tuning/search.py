"""A search, driven by Ray Tune: points go out to trials, what becomes of them is kept as it comes.

The driver alone writes: a trial's record to the store and its run to MLflow, as soon as the trial
ends. So a driver that is killed loses what ran at that moment, whose finished steps are artifacts.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from muva.config import ExperimentConfig, TuneConfig, with_settings
from muva.config.search_space import Space, conflict, space_for
from muva.data.artifacts import Artifact
from muva.data.sources import SourcesOnlyStore
from muva.errors import MuvaError, SettingsError
from workflows.progress import Track, say, track
from workflows.runtime.claims import SharedSteps, UsedStep
from workflows.runtime.cluster import cpus, gpus, ray_cluster
from workflows.runtime.workers import Workers
from workflows.session import Session
from workflows.steps.ground import ground
from workflows.steps.run_lineage import run_params, used_dataset
from workflows.steps.step import ARTIFACT_TAG, StepResult
from workflows.tuning.report import log_study, short
from workflows.tuning.sampler import Points
from workflows.tuning.study import Record, Study, ranked, record_of, reuse, study_of
from workflows.tuning.trial import (
    Reached,
    TrialInputs,
    aims_of,
    epochs_by_rung,
    folds_of,
    grounding_key,
    run_trial,
    rungs_of,
    trial_config,
)

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

SPARED = 4
"""No trial is stopped in the first of so many parts of its first training."""
LEAVES_AFTER_S = 3.0
"""A trial that is stopped in the midst ends its process so soon: Tune has heard of it by then."""
MOST_AT_ONCE = 8
"""Trials that a cluster without GPUs is given at once unless more are asked for: each holds the
images of its sources in memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search that can be made: its space is checked, its aim is one that trials report."""

    space: Space
    settings: TuneConfig
    aims: tuple[str, ...]
    config: ExperimentConfig

    def possible(self, point: Mapping[str, Any]) -> bool:
        """Whether a point's settings go together."""
        return not conflict(point, self.config)


def check_search(config: ExperimentConfig) -> Search:
    """The recipe's section tune, if its search is one that can be made; else SettingsError."""
    settings = config.tune
    if settings is None:
        raise SettingsError(f"Recipe {config.name}: expected a section tune, found none")
    space = space_for(settings.space, config)
    if space.finite or settings.search == "grid":
        reasons = (conflict(point, config) for point in space.points())
        first = next(reasons)
        if first and all(reasons):
            raise SettingsError(f"Recipe {config.name}: no point of the space is possible: {first}")
    if len(config.sources) < 2:
        raise SettingsError(
            f"Recipe {config.name}: a search trains on all sources but one and is judged on that "
            f"one; expected two sources or more, found {len(config.sources)}"
        )
    if settings.scheduler != "none" and any(s.name == "stage2.epochs" for s in space.settings):
        raise SettingsError(
            f"Recipe {config.name}: stage2.epochs is searched, and {settings.scheduler} compares "
            "trials at equal epochs: take it out of the space, or search without a scheduler"
        )
    held_out = config.sources[: folds_of(settings, len(config.sources))]
    if settings.folds is not None and settings.folds > len(config.sources):
        raise SettingsError(
            f"Recipe {config.name}: {settings.folds} folds, and there are {len(config.sources)} "
            "sources to hold out"
        )
    aims = aims_of(settings, held_out)
    return Search(space=space, settings=settings, aims=aims, config=config)


def search(
    session: Session,
    config: ExperimentConfig,
    *,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact],
    workers: Workers,
) -> StepResult:
    """Searches `config.tune.space`; the summary holds the trials, best first, and what was reused.

    `labels` are the sources' pseudo-labels by the recipe's own expert. What other experts of the
    space find is made before the first trial.
    """
    chosen = check_search(config)
    began_at = time.monotonic()
    inputs = {f"source {i}": source.address for i, source in enumerate(sources)}
    inputs |= {f"labels {i}": label.address for i, label in enumerate(labels)}
    study = study_of(
        session.store, config, chosen.settings, chosen.space, aims=chosen.aims, inputs=inputs
    )
    study.commit()
    for left_out in chosen.space.left_out:
        say(f"Not searched: {left_out}")
    with session.run(
        f"tune {study.artifact.name.removeprefix('study-')}",
        key=study.artifact.address,
        params={"tune": chosen.settings.model_dump(mode="json"), **run_params(config)},
    ) as run:
        if run is not None:
            run.set_tags({ARTIFACT_TAG: study.artifact.address})
            run.log_datasets(*map(used_dataset, sources), context="training")
        inside = session.within(run)
        finished = study.finished()
        for record in finished:
            _tell_trial(inside, study, record)
        computed = len(finished) < _wanted(chosen)
        if computed:
            every = _labels(session, config, chosen.space, sources, labels)
            store = SourcesOnlyStore(session.store, sources)
            trial_inputs = TrialInputs(
                session=dataclasses.replace(session, store=store, tracking_uri=None, parent=None),
                config=config.model_copy(update={"targets": (), "tune": None, "validation": None}),
                sources=tuple(dataclasses.replace(source, store=store) for source in sources),
                labels=every,
                workers=workers,
            )
            _run(inside, study, chosen, trial_inputs, finished)
        summary = summary_of(study)
        if run is not None:
            log_study(run, study, summary)
    seconds = time.monotonic() - began_at
    return StepResult(artifact=study.artifact, summary=summary, seconds=seconds, computed=computed)


def summary_of(study: Study) -> dict[str, Any]:
    """The trials that ended, best first, and what they took from each other."""
    records = study.finished()
    return {
        "study": study.artifact.address,
        "aims": list(study.aims),
        "trials": [
            {key: value for key, value in record.items() if key not in ("steps", "notes")}
            for record in ranked(records, study.aims)
        ],
        "reuse": reuse(records),
    }


def at_once(settings: TuneConfig, workers: Workers) -> tuple[int, Workers]:
    """How many trials run at once on this cluster, and the workers of each, which fit in it.

    A trial holds no core itself and never two groups of workers at a time, so trials can only wait
    for those that compute.
    """
    wanted = settings.concurrent_trials
    if wanted is None:
        cores = workers.count * (workers.cpus_each or 1)
        room = gpus() // workers.count if workers.use_gpu else min(cpus() // cores, MOST_AT_ONCE)
        wanted = max(1, min(room, settings.trials))
    share = cpus() // (workers.count * wanted)
    workers = dataclasses.replace(workers, cpus_each=workers.cpus_each or max(1, share))
    workers.check()
    return wanted, workers


def _wanted(chosen: Search) -> int:
    """How many trials there will be: fewer than asked for where the space has fewer points."""
    trials = chosen.settings.trials
    if not chosen.space.finite:
        return trials
    return sum(1 for _ in islice(filter(chosen.possible, chosen.space.points()), trials))


def _labels(
    session: Session,
    config: ExperimentConfig,
    space: Space,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact],
) -> dict[str, tuple[Artifact, ...]]:
    """The sources' pseudo-labels by every grounding of the space."""
    made = {grounding_key(config.grounding): tuple(labels)}
    searched = [one for one in space.settings if one.name.startswith("grounding.")]
    points = dataclasses.replace(space, settings=tuple(searched)).points() if searched else []
    for point in points:
        grounding = with_settings(config, point, where=config.name).grounding
        if grounding is not None and grounding_key(grounding) not in made:
            done = [ground(session, source, grounding).artifact for source in sources]
            made[grounding_key(grounding)] = tuple(done)
    return made


def _run(
    session: Session,
    study: Study,
    chosen: Search,
    inputs: TrialInputs,
    finished: Sequence[Record],
) -> None:
    """Runs trials until there are as many as asked for, or the budget is spent."""
    settings = chosen.settings
    # Tune's newer output prints tables at any verbosity, and the table here is the result.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    deadline = _Deadline(settings.budget_hours)
    wanted = _wanted(chosen)
    with ray_cluster(), track(f"tune {inputs.config.name}") as progress:
        concurrent, workers = at_once(settings, inputs.workers)
        shared = SharedSteps()
        inputs = dataclasses.replace(
            inputs,
            workers=workers,
            session=dataclasses.replace(inputs.session, shared=shared),
        )
        points = Points(
            chosen.space,
            method=settings.search,
            aims=chosen.aims,
            seed=inputs.config.seed,
            trials=wanted,
            finished=finished,
            started=study.begun(),
            possible=chosen.possible,
        )
        before = {record["number"]: record for record in finished}
        searcher = _Searcher(session, study, points, inputs, chosen, deadline, progress, before)
        results = ray_tune.Tuner(
            # A trial only waits for the tasks and workers that it starts: if it held a core, its
            # own workers could wait for that core for ever. Ray wants it to hold something.
            ray_tune.with_resources(
                ray_tune.with_parameters(_trial, inputs=inputs, settings=settings),
                {"memory": 1},
            ),
            tune_config=ray_tune.TuneConfig(
                metric=chosen.aims[0],
                mode="max",
                num_samples=wanted,
                max_concurrent_trials=concurrent,
                search_alg=searcher,
                scheduler=_scheduler(settings, inputs),
                # A trial that is stopped in the midst ends with its process, and so do its workers.
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
        raise KeyboardInterrupt  # Tune ends on Ctrl-C as if it were done
    if results.num_errors:
        raise MuvaError(
            f"{results.num_errors} of {len(results)} trials failed; the first: "
            f"{str(results.errors[0]).strip().splitlines()[-1]}. What the others finished is kept; "
            "the same command goes on from there"
        )
    if deadline.passed() and len(study.finished()) < wanted:
        say(
            f"The {settings.budget_hours:g} h are over with {len(study.finished())} of {wanted} "
            "trials; the same command goes on with those that ran"
        )


def _scheduler(settings: TuneConfig, inputs: TrialInputs) -> TrialScheduler | None:
    """What stops trials that fall behind others at the same epoch of the same training."""
    grace = max(1, epochs_by_rung(inputs.config, settings) // SPARED)
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

    def report(reached: Reached) -> None:
        steps = [dataclasses.asdict(step) for step in shared.used]
        told = {"reached": dataclasses.asdict(reached), "steps": steps}
        metrics = reached.metrics
        if reached.failed is not None:  # Tune insists on the metric, and its scheduler compares
            metrics = dict.fromkeys(aims_of(settings, [s.name for s in inputs.sources]), 0.0)
        # As text, for Tune would make a metric of each number in it.
        ray_tune.report({**metrics, "rung": reached.rung, "told": json.dumps(told)})

    try:
        run_trial(params, inputs=inputs, settings=settings, report=report)
    except SystemExit:  # Tune stops the trial
        if settings.scheduler != "none":
            # Ray would let the process wait for the training that it has begun; its workers end
            # when it does.
            leaving = threading.Timer(LEAVES_AFTER_S, os._exit, [0])
            leaving.daemon = True
            leaving.start()
        raise


def _told(result: Mapping[str, Any]) -> tuple[Reached, list[UsedStep]]:
    """What `_trial` reported."""
    told = json.loads(result["told"])
    return Reached(**told["reached"]), [UsedStep(**step) for step in told["steps"]]


def _given(inputs: TrialInputs, settings: TuneConfig, params: Mapping[str, Any]) -> list[UsedStep]:
    """The data and labels that a trial is given, which it would have to make if it were alone."""
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
    """Ends a search after some hours of a clock that never jumps."""

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = math.inf if hours is None else clock() + 3600 * hours

    def passed(self) -> bool:
        """Whether the hours are over."""
        return self._clock() >= self._ends_at

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return self.passed()

    def stop_all(self) -> bool:
        """Tune asks again and again."""
        return self.passed()


class _Searcher(Searcher):
    """Gives points to Tune's trials, and keeps what becomes of them."""

    def __init__(
        self,
        session: Session,
        study: Study,
        points: Points,
        inputs: TrialInputs,
        chosen: Search,
        deadline: _Deadline,
        progress: Track,
        before: Mapping[int, Record],
    ) -> None:
        super().__init__(metric=chosen.aims[0], mode="max")
        self._session, self._study, self._points = session, study, points
        self._aims, self._deadline, self._progress = chosen.aims, deadline, progress
        self._wanted = _wanted(chosen)
        self._records = dict(before)
        self.running: dict[str, tuple[int, dict[str, Any]]] = {}
        self._rungs: dict[str, dict[int, float]] = {}
        self._show()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """They are known already."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The point of a new trial."""
        drawn = None if self._deadline.passed() else self._points.next()
        if drawn is None:
            return Searcher.FINISHED
        number, params = drawn
        self._study.begin(number, params)
        self.running[trial_id] = drawn
        self._rungs[trial_id] = {}
        return {"number": number, "params": params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Remembers what was reached at a rung."""
        if _told(result)[0].failed is not None:
            return
        number, _ = self.running[trial_id]
        self._rungs[trial_id][result["rung"]] = result[self._aims[0]]
        self._points.report(number, result["rung"], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Keeps the record of a trial that came to its end, or that fell behind."""
        number, params = self.running.pop(trial_id)
        rungs = self._rungs.pop(trial_id)
        if error or not result or "told" not in result:
            self._points.tell(number, None, stopped=False)
            return
        reached, steps = _told(result)
        if self._deadline.passed() and reached.state == "stopped":
            self._points.tell(number, None, stopped=False)
            return
        if reached.failed is not None:
            say(f"Trial {number}, {short(params)}: {reached.failed}")
        elif reached.rung not in rungs:  # a report that ends a trial is told here alone
            rungs[reached.rung] = reached.metrics[self._aims[0]]
            self._points.report(number, reached.rung, reached.metrics)
        record = record_of(
            number,
            params,
            reached,
            steps=steps,
            rungs=rungs,
            notes=self._points.notes(number),
        )
        values = reached.metrics if reached.failed is None else self._points.nothing
        self._points.tell(number, values, stopped=reached.state == "stopped")
        self._study.finish(record)
        self._records[number] = record
        _tell_trial(self._session, self._study, record)
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher to restore it after a crash; the store serves for that."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store holds it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search that goes on is a new one that knows what was found."""

    def _show(self) -> None:
        done = list(self._records.values())
        values = [r["metrics"][self._aims[0]] for r in done if r["state"] == "complete"]
        note = f"best {self._aims[0]} {100 * max(values):.1f}" if values else ""
        self._progress.update(len(done), self._wanted, note=note)


def _tell_trial(session: Session, study: Study, record: Record) -> None:
    """A trial's child run."""
    place = study.trial(record["params"])
    name, params = f"trial {record['number']}", record["params"]
    with session.run(name, key=place.address, params=params) as run:
        if run is not None:
            _write_trial(run, record, place)


def _write_trial(run: Run, record: Record, place: Artifact) -> None:
    run.log_metrics({**record["metrics"], "seconds": record["seconds"]})
    for rung, value in record["rungs"].items():
        run.log_metrics({"held-out/by-rung": value}, int(rung))
    run.set_tags({ARTIFACT_TAG: place.address, "state": record["state"]})
    if record["state"] == "failed":
        run.set_description(record["failed"])
