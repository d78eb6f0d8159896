"""Cost and gain of a search over settings: `python -m benchmarks.tuning`.

reuse: the time that trials in the mask space save by sharing steps, from images to results.
concurrency: the same trials with half of the cores each, one after the other and two at once; and
one after the other with all cores each, which is the alternative. study: a search on synthetic
sources; its best trial is retrained with other seeds and compared with the default, on the held-out
sources and, only at the end, on a target that was not used before.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baseline import (
    Row,
    Table,
    benchmark_parser,
    exit_code,
    mean_of,
    measurement,
    write_results,
)
from muva.config import ExperimentConfig, load_recipe, with_settings
from muva.data.artifacts import Artifact, list_artifacts
from tracking.names import experiment_name
from workflows.progress import say
from workflows.runtime.cluster import cpus, ray_cluster
from workflows.runtime.workers import Workers
from workflows.session import Session, open_session
from workflows.steps.evaluate import evaluate_on
from workflows.steps.ground import ground
from workflows.steps.import_data import datasets_of
from workflows.steps.train import declare_training, train
from workflows.tuning.search import search
from workflows.tuning.study import best_of, find_study, reuse
from workflows.tuning.trial import (
    TrialInputs,
    TrialProgress,
    grounding_key,
    run_trial,
    trial_config,
)

WORKS = ("reuse", "concurrency", "study")
MIN_SAVED = 0.6
"""Goal: fraction of the mask space's compute saved by reuse."""
MAX_OF_SEQUENTIAL = 0.6
"""Goal: time of two concurrent trials relative to the same trials one after the other."""
OWN_KINDS = ("prompts", "models", "features", "metrics")
"""The artifacts that a trial makes; data and labels exist already."""


def main() -> int:
    """Measure, then print; with --check, exit with 1 if a goal is missed."""
    parser = benchmark_parser("tuning", __doc__, check="exit 1 where a bound is missed")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--space", default="all", help="that the study searches")
    parser.add_argument("--trials", type=int, default=40, help="of the study")
    parser.add_argument("--timed-trials", type=int, default=40, help="of concurrency")
    parser.add_argument("--reuse-trials", type=int, default=20, help="of reuse")
    parser.add_argument("--people", type=int, default=32, help="that a domain shows for training")
    parser.add_argument("--epochs", type=int, default=4, help="of both stages")
    parser.add_argument("--folds", type=int, default=2, help="that the study holds out")
    parser.add_argument("--seeds", type=int, default=3, help="of the default and the best trial")
    parser.add_argument("--home", type=Path, help="kept; the next run resumes [a new folder]")
    arguments = parser.parse_args()
    config = load_recipe(arguments.recipe)
    sizes = {
        "synthetic.train_people": arguments.people,
        "synthetic.test_people": arguments.people,
        "tune.stage1_epochs": arguments.epochs,
        "tune.stage2_epochs": arguments.epochs,
        "stage2.milestones": [],
    }
    config = with_settings(config, sizes, where=arguments.recipe)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = arguments.home or Path(temporary)
        with ray_cluster():
            if "reuse" in arguments.works:
                figures["reuse"] = measured_reuse(
                    home / "reuse", config, trials=arguments.reuse_trials
                )
            if "concurrency" in arguments.works:
                figures["concurrency"] = measured_concurrency(
                    home, config, trials=arguments.timed_trials
                )
            if "study" in arguments.works:
                changes = {
                    "tune.space": arguments.space,
                    "tune.trials": arguments.trials,
                    "tune.folds": arguments.folds,
                    "tune.concurrent_trials": None,
                }
                studied = with_settings(config, changes, where=arguments.recipe)
                figures["study"] = measured_study(home / "study", studied, seeds=arguments.seeds)
    print(json.dumps(figures, indent=2))
    write_results(arguments, figures, baseline_tables)
    missed = missing(figures)
    return exit_code(arguments, missed)


def baseline_tables(figures: Mapping[str, Any]) -> dict[str, Table]:
    """`reuse`, `concurrency`, `study`: what was measured of them."""
    reuse_, study_ = [], []
    if reused := figures.get("reuse"):
        reuse_.append(
            {
                "trials": reused["trials"],
                "together_s": measurement(reused["spent_s"]),
                "alone_s": measurement(reused["alone_s"]),
                "saved": reused["saved"],
                "saved_of_training": reused["saved_without_data_and_labels"],
                "goal": MIN_SAVED,
            }
        )
    concurrency = []
    if timed := figures.get("concurrency"):
        seconds = timed["seconds"]
        names = {
            "sequential": "one after the other, a core each",
            "two at once": "two at once, a core each",
            "sequential, all cores each": "one after the other, all cores each",
        }
        for way, name in names.items():
            row: Row = {"way": name, "seconds": measurement(seconds[way])}
            if way == "two at once":
                row |= {"share": timed["of_sequential"], "goal": MAX_OF_SEQUENTIAL}
            concurrency.append(row)
    if studied := figures.get("study"):
        for key, name in (("held_out", "held-out sources"), ("target", "target")):
            of = studied[key]
            study_.append(
                {"evaluated_on": name}
                | {one: measurement(mean_of(of[one]["by_seed"])) for one in ("default", "best")}
                | {"difference": of["gain"]}
            )
    tables = {"reuse": reuse_, "concurrency": concurrency, "study": study_}
    return {name: Table(rows=rows) for name, rows in tables.items()}


def missing(figures: Mapping[str, Any]) -> list[str]:
    """Descriptions of the missed goals."""
    missed = []
    saved = figures.get("reuse", {}).get("saved", 1.0)
    if saved < MIN_SAVED:
        missed.append(f"reuse saves {saved:.2f} of the compute, expected {MIN_SAVED}")
    share = figures.get("concurrency", {}).get("of_sequential", 0.0)
    if share > MAX_OF_SEQUENTIAL:
        missed.append(f"two at once take {share:.2f} of the time, expected {MAX_OF_SEQUENTIAL}")
    return missed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    """Sources with their pseudo-labels, in a separate home folder."""

    session: Session
    config: ExperimentConfig
    sources: list[Artifact]
    labels: list[Artifact]

    def search(self, workers: Workers, **changes: Any) -> dict[str, Any]:
        """The summary of a search with these settings."""
        changed = {f"tune.{key}": value for key, value in changes.items()}
        config = with_settings(self.config, changed, where=self.config.name)
        done = search(
            self.session, config, sources=self.sources, labels=self.labels, workers=workers
        )
        return done.summary

    def trial(self, params: Mapping[str, Any], *, seeds: int) -> TrialProgress:
        """A trial by itself, in this process."""
        settings = self.config.tune
        assert settings is not None
        grounding = trial_config(self.config, settings, params).grounding
        assert grounding is not None
        labels = [done.artifact for done in ground(self.session, self.sources, grounding)]
        inputs = TrialInputs(
            session=dataclasses.replace(self.session, tracking_uri=None),
            config=self.config.model_copy(update={"targets": (), "tune": None}),
            sources=tuple(self.sources),
            labels={grounding_key(grounding): tuple(labels)},
            workers=Workers(),
        )
        reached: list[TrialProgress] = []
        seeded = settings.model_copy(update={"seeds": seeds})
        run_trial(params, inputs=inputs, settings=seeded, report=reached.append)
        return reached[-1]


def prepared(home: Path, config: ExperimentConfig) -> Sources:
    """The recipe's sources, rendered and grounded."""
    session = open_session(home=home, experiment=experiment_name(f"{config.name}-tuning"))
    sources = [d.artifact for d in datasets_of(session, config.sources, config.synthetic).values()]
    assert config.grounding is not None
    labels = [done.artifact for done in ground(session, sources, config.grounding)]
    return Sources(session=session, config=config, sources=sources, labels=labels)


def measured_reuse(home: Path, config: ExperimentConfig, *, trials: int) -> dict[str, Any]:
    """The time saved by sharing steps in the mask space, from the seconds in the manifests.

    One trial is also run in a separate home folder, which gives the real time of a single trial.
    """
    place = prepared(home, config)
    began_at = time.monotonic()
    summary = place.search(Workers(), space="masks", trials=trials, folds=1, concurrent_trials=1)
    took_s = time.monotonic() - began_at
    records = find_study(place.session.store, summary["study"]).finished()
    own = [
        {"steps": [s for s in record["steps"] if s["address"].split("/")[0] in OWN_KINDS]}
        for record in records
    ]
    alone_s = statistics.fmean(sum(s["seconds"] for s in record["steps"]) for record in records)
    with tempfile.TemporaryDirectory() as other:
        began_at = time.monotonic()
        alone = prepared(Path(other), config)
        alone.search(Workers(), space="masks", trials=1, folds=1, concurrent_trials=1)
        measured_s = time.monotonic() - began_at
    return {
        **summary["reuse"],
        "trials": trials,
        "search_s": round(took_s, 1),
        "saved_without_data_and_labels": reuse(own)["saved"],
        "a_trial_alone_s": {"by_manifests": round(alone_s, 1), "measured": round(measured_s, 1)},
    }


def measured_concurrency(home: Path, config: ExperimentConfig, *, trials: int) -> dict[str, Any]:
    """The seconds of the same trials one after the other and two at once.

    They differ only in settings of stage 2, so they share just the prompts. The start of a search,
    its processes and the prompts, takes equally long for one or two trials. `a_model_s` is the time
    of a trial's training, which shows how much trials on neighbouring cores slow each other down.
    """
    cores = cpus()
    half = max(1, cores // 2)
    space = {"stage2.mask_weight": np.geomspace(0.25, 4.0, trials).round(6).tolist()}
    ways = {
        "sequential": (1, half),
        "two at once": (2, half),
        "sequential, all cores each": (1, cores),
    }
    seconds, a_model_s = {}, {}
    for name, (concurrency, cores_each) in ways.items():
        place = prepared(home / name.replace(" ", "-").replace(",", ""), config)
        workers = Workers(cpus_each=cores_each)
        say(f"{name}: {trials} trials, {workers.cpus_each} cores each")
        began_at = time.monotonic()
        place.search(
            workers,
            space=space,
            search="grid",
            trials=trials,
            folds=1,
            concurrent_trials=concurrency,
        )
        seconds[name] = round(time.monotonic() - began_at, 1)
        made = [model.manifest() for model in list_artifacts(place.session.store, "models")]
        a_model_s[name] = round(statistics.fmean(one["seconds"] for one in made if one), 2)
    return {
        "cores": cores,
        "trials": trials,
        "seconds": seconds,
        "a_model_s": a_model_s,
        "of_sequential": round(seconds["two at once"] / seconds["sequential"], 3),
        "of_sequential_with_all_cores": round(
            seconds["two at once"] / seconds["sequential, all cores each"], 3
        ),
    }


def measured_study(home: Path, config: ExperimentConfig, *, seeds: int) -> dict[str, Any]:
    """The gain of a search's best trial over the default, on held-out sources and on the target.

    Both are retrained with seeds that the search did not use, because its best value is a maximum
    over many trials; for the target, on all sources with the epochs of a trial.
    """
    place = prepared(home, config)
    began_at = time.monotonic()
    summary = place.search(Workers())
    search_s = time.monotonic() - began_at
    study = find_study(place.session.store, summary["study"])
    best = best_of(study, study.finished())
    fresh = config.model_copy(update={"seed": config.seed + 1000})
    again = dataclasses.replace(place, config=fresh)
    held_out, on_target = {}, {}
    for name, params in (("default", {}), ("best", best["params"])):
        say(f"{name}: {seeds} seeds on held-out sources")
        held_out[name] = again.trial(params, seeds=seeds).by_seed
    for name, params in (("default", {}), ("best", best["params"])):
        say(f"{name}: {seeds} seeds on {', '.join(config.targets)}")
        on_target[name] = _scores_on_targets(again, params, seeds=seeds)
    return {
        "trials": len(summary["trials"]),
        "states": {
            state: sum(trial["state"] == state for trial in summary["trials"])
            for state in ("complete", "stopped", "failed")
        },
        "search_s": round(search_s, 1),
        "reuse": summary["reuse"],
        "best": {"trial": best["number"], "params": best["params"], "metrics": best["metrics"]},
        "held_out": compared(held_out),
        "target": compared(on_target),
    }


def _scores_on_targets(place: Sources, params: Mapping[str, Any], *, seeds: int) -> list[float]:
    """Mean mAP over the targets for each seed, trained on all sources."""
    settings = place.config.tune
    assert settings is not None
    session = place.session
    targets = datasets_of(session, place.config.targets, place.config.synthetic).values()
    values = []
    for seed in range(seeds):
        config = trial_config(place.config, settings, params)
        config = config.model_copy(update={"seed": config.seed + seed})
        assert config.grounding is not None
        labels = [done.artifact for done in ground(session, place.sources, config.grounding)]
        training = declare_training(
            session,
            config,
            sources=place.sources,
            labels=labels if config.model.parts else None,
            name="tuned" if params else "default",
        )
        trained = train(session, training, Workers())
        found = [
            evaluate_on(session, trained.model.uri, one.artifact, config, name="tuning")
            for one in targets
        ]
        values.append(statistics.fmean(one.scores.mean_ap for one in found))
    return values


def compared(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Means, deviations between seeds, and the gain of the best over the default, as fractions."""
    scores: dict[str, Any] = {
        name: {
            "mean_ap": round(statistics.fmean(one), 4),
            "deviation": round(statistics.stdev(one), 4) if len(one) > 1 else None,
            "by_seed": [round(value, 4) for value in one],
        }
        for name, one in values.items()
    }
    scores["gain"] = round(scores["best"]["mean_ap"] - scores["default"]["mean_ap"], 4)
    return scores


if __name__ == "__main__":
    sys.exit(main())
