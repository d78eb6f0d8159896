"""`muva tune`: a search over settings, judged on source domains held out in turn.

A trial is a pipeline: it trains on all sources but one and is scored on the training images of the
one held out. Its steps are artifacts, so trials that differ in mask settings share data, labels and
prompts. No target is ever opened here: the search knows the sources alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import optuna
from ray import tune as ray_tune
from ray.tune.search.optuna import OptunaSearch
from rich.table import Table

from muva.config import ExperimentConfig, TuneConfig, load_recipe, with_settings
from muva.data.artifacts import Artifact, fingerprint
from muva.errors import MuvaError, SettingsError
from muva.model.clip import check_clip
from tracking.names import experiment_name
from workflows.cluster import cpus, ray_cluster
from workflows.data import datasets_of
from workflows.evaluate import evaluate_on
from workflows.ground import ground
from workflows.progress import Track, as_text, track
from workflows.session import (
    Session,
    json_option,
    override_option,
    print_result,
    session_options,
)
from workflows.steps import Done, Step, do_step
from workflows.train import check_training, train
from workflows.workers import Workers, worker_options

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

TUNE_FORMAT = 1
OBJECTIVE = "held-out/mAP"
"""Mean over the held-out sources; what the search maximises."""
SEARCHED = ("model", "prompts", "stage1", "stage2", "seed")
"""Sections whose settings may be searched: what a trial trains with."""
FIRST_POINTS = 10
"""Trials that Optuna's sampler draws before it learns from results; it may draw the same twice."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialInputs:
    """What a trial works with: source domains, and nothing else."""

    session: Session
    config: ExperimentConfig
    sources: tuple[Artifact, ...]
    labels: tuple[Artifact, ...]
    workers: Workers


def check_search(config: ExperimentConfig) -> TuneConfig:
    """The recipe's section tune, if its search is one that can be made; else SettingsError."""
    settings = config.tune
    if settings is None:
        raise SettingsError(f"Recipe {config.name}: expected a section tune, found none")
    if not settings.space:
        raise SettingsError(f"Recipe {config.name}: tune.space names no setting to search")
    if len(config.sources) < 2:
        raise SettingsError(
            f"Recipe {config.name}: a search trains on all sources but one and is judged on that "
            f"one; expected two sources or more, found {len(config.sources)}"
        )
    for setting, values in settings.space.items():
        if setting.split(".")[0] not in SEARCHED:
            raise SettingsError(
                f"Recipe {config.name}: tune.space.{setting} changes nothing that a trial is "
                f"judged by: expected a setting of {', '.join(SEARCHED)}"
            )
        if not values:
            raise SettingsError(f"Recipe {config.name}: tune.space.{setting} names no value")
        for value in values:
            changed = with_settings(config, {setting: value}, where=f"{config.name}, tune.space")
            check_clip(changed.model.clip)
    return settings


def search(
    session: Session,
    config: ExperimentConfig,
    *,
    sources: Sequence[Artifact],
    labels: Sequence[Artifact],
    workers: Workers,
) -> Done:
    """Searches `config.tune.space`; the artifact's summary holds the trials, best first."""
    settings = check_search(config)
    trial_config = config.model_copy(update={"targets": (), "tune": None})
    inputs = TrialInputs(
        session=dataclasses.replace(session, tracking_uri=None, parent=None),
        config=trial_config,
        sources=tuple(sources),
        labels=tuple(labels),
        workers=workers,
    )
    addresses = {f"source {i}": source.address for i, source in enumerate(sources)}
    addresses |= {f"labels {i}": label.address for i, label in enumerate(labels)}
    recorded = {
        "tune": settings.model_dump(mode="json"),
        "experiment": trial_config.model_dump(mode="json"),
    }
    step = Step(
        label=f"tune {config.name}",
        artifact=Artifact(
            session.store, "metrics", f"tune-{config.name}", fingerprint([recorded, addresses])
        ),
        format_version=TUNE_FORMAT,
        config=recorded,
        inputs=addresses,
    )

    def report(run: Run, summary: dict[str, Any]) -> None:
        for number, trial in enumerate(summary["trials"]):
            _tell_trial(session.within(run), number, trial, step.artifact)
        best = summary["trials"][0]
        run.metrics(best["metrics"])
        run.tags({f"best.{setting}": str(value) for setting, value in best["params"].items()})

    return do_step(step, session=session, work=lambda _: _search(inputs, settings), report=report)


def _search(inputs: TrialInputs, settings: TuneConfig) -> dict[str, Any]:
    space = {setting: ray_tune.choice(values) for setting, values in settings.space.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Tune's newer output prints tables at any verbosity, and the table here is the result.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    points = distinct_points(settings.space, settings.trials, seed=inputs.config.seed)
    with ray_cluster(), track(f"tune {inputs.config.name}") as progress:
        share = cpus() // (inputs.workers.count * settings.concurrent_trials)
        workers = dataclasses.replace(
            inputs.workers, cpus_each=inputs.workers.cpus_each or max(1, share)
        )
        inputs = dataclasses.replace(inputs, workers=workers)
        results = ray_tune.Tuner(
            # A trial only waits for the tasks and workers that it starts: if it held a core, its
            # own workers could wait for that core for ever. Ray wants it to hold something.
            ray_tune.with_resources(
                ray_tune.with_parameters(_trial, inputs=inputs, settings=settings),
                {"memory": 1},
            ),
            param_space=space,
            tune_config=ray_tune.TuneConfig(
                metric=OBJECTIVE,
                mode="max",
                num_samples=len(points),
                max_concurrent_trials=settings.concurrent_trials,
                search_alg=OptunaSearch(
                    seed=inputs.config.seed, points_to_evaluate=points[:FIRST_POINTS]
                ),
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=f"{inputs.config.name}-{uuid.uuid4().hex[:8]}",
                storage_path=str(inputs.session.home / "tune"),
                verbose=0,
                callbacks=[_Progress(progress, len(points))],
            ),
        ).fit()
    if results.num_errors:
        raise MuvaError(
            f"{results.num_errors} of {len(results)} trials failed; the first: "
            f"{str(results.errors[0]).strip().splitlines()[-1]}. What the others finished is kept; "
            "the same command goes on from there"
        )
    trials = [_trial_summary(result.config or {}, result.metrics or {}) for result in results]
    trials.sort(key=lambda trial: (-trial["metrics"][OBJECTIVE], str(trial["params"])))
    return {"trials": trials}


def distinct_points(
    space: Mapping[str, Sequence[Any]], count: int, *, seed: int
) -> list[dict[str, Any]]:
    """So many different choices of a value for each setting, at random; all, if there are fewer."""
    combinations = math.prod(len(values) for values in space.values())
    points = []
    for number in random.Random(seed).sample(range(combinations), min(count, combinations)):
        point = {}
        for setting, values in space.items():
            number, place = divmod(number, len(values))
            point[setting] = values[place]
        points.append(point)
    return points


def _trial(params: Mapping[str, Any], *, inputs: TrialInputs, settings: TuneConfig) -> None:
    """One trial, in a process of its own; reports after each held-out source."""
    changes = {
        "stage1.epochs": settings.stage1_epochs,
        "stage2.epochs": settings.stage2_epochs,
        **params,
    }
    config = with_settings(inputs.config, changes, where="of the trial")
    reached: dict[str, float] = {}
    for fold in range(min(settings.folds, len(inputs.sources))):
        held_out = inputs.sources[fold]
        others = [place for place in range(len(inputs.sources)) if place != fold]
        trained = train(
            inputs.session,
            config,
            sources=[inputs.sources[place] for place in others],
            labels=[inputs.labels[place] for place in others] if config.model.parts else None,
            workers=inputs.workers,
            name=f"trial-without-{held_out.name}",
        )
        found = evaluate_on(
            inputs.session,
            trained.model.uri,
            held_out,
            config,
            name=f"trial-without-{held_out.name}",
            held_out=True,
        )
        reached[f"{held_out.name}/mAP"] = found.mean_ap
        reached[f"{held_out.name}/rank-1"] = found.rank1
        mean = sum(v for k, v in reached.items() if k.endswith("/mAP")) / (fold + 1)
        ray_tune.report({OBJECTIVE: mean, **reached})


def _trial_summary(params: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a trial: its settings and what it reached."""
    reached = {key: value for key, value in metrics.items() if "/" in key and key not in params}
    return {
        "params": {key: params[key] for key in sorted(params)},
        "metrics": {key: value for key, value in reached.items() if not key.startswith("config/")},
        "seconds": round(float(metrics.get("time_total_s", 0.0)), 1),
    }


def _tell_trial(session: Session, number: int, trial: Mapping[str, Any], search: Artifact) -> None:
    """A trial's child run."""
    name = " · ".join(str(value) for value in trial["params"].values())
    key = f"{search.address}/{fingerprint(trial['params'])}-{number}"
    with session.run(name, key=key, params=trial["params"]) as run:
        if run is not None:
            run.metrics({**trial["metrics"], "seconds": trial["seconds"]})


class _Progress(ray_tune.Callback):
    """Tells a person how the search goes on, trial by trial."""

    def __init__(self, progress: Track, trials: int) -> None:
        self._progress, self._trials, self._done, self._best = progress, trials, 0, 0.0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Counts a finished trial."""
        self._done += 1
        self._best = max(self._best, trial.last_result.get(OBJECTIVE, 0.0))
        note = f"best held-out mAP {100 * self._best:.1f}"
        self._progress.update(self._done, self._trials, note=note)


def trials_table(summary: Mapping[str, Any]) -> Table:
    """The trials, best first, held-out mAP in per cent."""
    trials = summary["trials"]
    table = Table(title="Trials on held-out sources")
    for setting in trials[0]["params"]:
        table.add_column(setting)
    table.add_column("held-out mAP", justify="right")
    table.add_column("seconds", justify="right")
    for trial in trials:
        reached = f"{100 * trial['metrics'][OBJECTIVE]:.1f}"
        table.add_row(*map(str, trial["params"].values()), reached, str(trial["seconds"]))
    return table


@click.command("tune")
@click.argument("recipe")
@override_option
@worker_options
@json_option
@session_options
def tune_verb(
    recipe: str, overrides: tuple[str, ...], workers: Workers, as_json: bool, session: Session
) -> None:
    """Search the settings of RECIPE's section tune, judged on source domains held out in turn.

    \b
    muva tune demo --set tune.trials=8
    """
    config = load_recipe(recipe, overrides=overrides)
    settings = check_search(config)
    session = dataclasses.replace(session, experiment=experiment_name(config.name))
    with ray_cluster():
        imports = datasets_of(session, config.sources, config.synthetic)
        sources = [done.artifact for done in imports.values()]
        for fold in range(min(settings.folds, len(sources))):
            check_training(config, [*sources[:fold], *sources[fold + 1 :]], workers)
        labels = []
        if config.grounding is not None:
            labels = [ground(session, source, config.grounding).artifact for source in sources]
        done = search(session, config, sources=sources, labels=labels, workers=workers)
    print_result(done.summary, as_json=as_json, text=as_text(trials_table(done.summary)))
