"""What a search found, for people: its trials, what matters, how it went; pictures in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from rich.markup import escape
from rich.table import Table

from muva.config import ExperimentConfig
from muva.config.search_space import label
from workflows.tuning.study import Study, pareto, ranked
from workflows.tuning.trial import DEVIATION, MEAN, WORST

if TYPE_CHECKING:  # MLflow takes a second and 80 MB, and workers never need it
    from tracking.runs import Run

ENOUGH = 8
"""Complete trials from which on the settings' importance is told."""
COLUMNS = 4
"""Searched settings up to which each has a column of its own."""
NAMES = {MEAN: "held-out mAP", WORST: "worst domain"}


def importance(study: Study, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each setting's share in the variance of the first objective (fANOVA), largest first.

    A setting that a trial did not draw counts with the recipe's value. Empty for too few trials.
    """
    done = [record for record in records if record["state"] == "complete"]
    if len(done) < ENOUGH or len({record["metrics"][study.objectives[0]] for record in done}) == 1:
        return {}
    points = [whole_point(study, record["params"]) for record in done]
    varied = [name for name in points[0] if len({label(point[name]) for point in points}) > 1]
    if not varied:
        return {}
    told = optuna.create_study(direction="maximize")
    distributions = {name: _over([point[name] for point in points]) for name in varied}
    for point, record in zip(points, done, strict=True):
        told.add_trial(
            optuna.trial.create_trial(
                params={name: label(point[name]) for name in varied},
                distributions=distributions,
                value=record["metrics"][study.objectives[0]],
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(told, evaluator=evaluator))


def whole_point(study: Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """A value for every searched setting: the trial's, or the recipe's where it drew none."""
    base = study.recipe
    return {
        name: params[name] if name in params else _setting_of(base, name)
        for name in study.config["space"]["settings"]
    }


def history(study: Study, records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """Number, value and best value so far of the complete trials, by the first objective."""
    told, best = [], float("-inf")
    for record in sorted(records, key=lambda record: record["number"]):
        if record["state"] == "complete":
            value = record["metrics"][study.objectives[0]]
            best = max(best, value)
            told.append((record["number"], value, best))
    return told


def trials_table(summary: Mapping[str, Any]) -> Table:
    """The trials, best first, with held-out mAP in per cent.

    With two objectives, * marks the trials that no other dominates.
    """
    trials, objectives = summary["trials"], summary["objectives"]
    table = Table(title="Trials on held-out sources")
    settings = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    table.add_column("trial", justify="right")
    for name in settings if len(settings) <= COLUMNS else ["settings"]:
        table.add_column(name, overflow="fold")
    shown = [MEAN, *(objective for objective in objectives if objective != MEAN)]
    for objective in shown:
        table.add_column(NAMES.get(objective) or objective, justify="right")
    several = any(DEVIATION in trial["metrics"] for trial in trials)
    if several:
        table.add_column("± seeds", justify="right")
    table.add_column("seconds", justify="right")
    unbeaten = (
        {one["number"] for one in pareto(trials, objectives)} if len(objectives) > 1 else set()
    )
    for trial in trials:
        params = trial["params"]
        values = [str(label(params[name])) if name in params else "" for name in settings]
        if len(settings) > COLUMNS:
            values = [short(params)]
        note = "*" if trial["number"] in unbeaten else ""
        reached = [_per_cent(trial["metrics"].get(objective)) for objective in shown]
        if trial["state"] != "complete":
            reached[0] = f"{reached[0]} {trial['state']}".strip()
        if several:
            reached.append(_per_cent(trial["metrics"].get(DEVIATION)))
        table.add_row(
            f"{trial['number']}{note}", *map(escape, values), *reached, str(trial["seconds"])
        )
    return table


def short(params: Mapping[str, Any]) -> str:
    """The settings in a line, their sections left out."""
    told = []
    for name, value in params.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(label(value))
        told.append(f"{name.partition('.')[2]}={shown}")
    return " ".join(told)


def reuse_text(told: Mapping[str, Any]) -> str:
    """What was shared, in a sentence or two."""
    if not told["used"]:
        return "No step was used yet."
    shared = [
        f"{kind} {one['used']:.0f} times, made {one['computed']:.0f} times"
        for kind, one in told["kinds"].items()
        if one["used"] > one["computed"]
    ]
    if not shared:
        return "No two trials shared a step."
    return (
        f"Steps that trials shared: {'; '.join(shared)}. That saved {told['saved_s']:.0f} s of "
        f"{told['alone_s']:.0f} s ({100 * told['saved']:.0f} %)."
    )


def log_study(run: Run, study: Study, summary: Mapping[str, Any]) -> None:
    """The best trial's figures, a table, and pictures, in the study's run."""
    from tracking.tuning_pictures import history_plot, importance_plot, parallel_coordinates

    records = study.finished()
    complete = [
        record for record in ranked(records, study.objectives) if record["state"] == "complete"
    ]
    if complete:
        best = complete[0]
        run.log_metrics(best["metrics"])
        run.set_tags({f"best.{name}": str(value) for name, value in best["params"].items()})
    told = summary["reuse"]
    run.log_metrics({"reuse/saved": told["saved"], "reuse/saved-seconds": told["saved_s"]})
    run.set_description(f"{_markdown(summary)}\n\n{reuse_text(told)}")
    name = NAMES.get(study.objectives[0], study.objectives[0])
    if complete:
        stopped = [
            (record["number"], record["metrics"][study.objectives[0]])
            for record in records
            if record["state"] == "stopped"
        ]
        figure = history_plot(history(study, records), stopped=stopped, objective=name)
        run.log_figure("search/history.png", figure)
    if len(complete) > 1:
        points = [
            (whole_point(study, r["params"]), r["metrics"][study.objectives[0]]) for r in complete
        ]
        logs = {
            setting
            for setting, entry in study.config["space"]["settings"].items()
            if entry.get("log")
        }
        run.log_figure(
            "search/parallel.png", parallel_coordinates(points, objective=name, logarithmic=logs)
        )
    shares = importance(study, records)
    if shares:
        run.log_figure("search/importance.png", importance_plot(shares, objective=name))


def _markdown(summary: Mapping[str, Any]) -> str:
    lines = ["| trial | settings | mAP | worst |", "|---:|---|---:|---:|"]
    for trial in summary["trials"][:50]:
        values = [_per_cent(trial["metrics"].get(objective)) for objective in (MEAN, WORST)]
        lines.append(f"| {trial['number']} | {short(trial['params'])} | {' | '.join(values)} |")
    return "\n".join(lines)


def _over(values: Sequence[Any]) -> BaseDistribution:
    numbers = [value for value in values if isinstance(value, float)]
    if len(numbers) == len(values):
        return FloatDistribution(min(numbers), max(numbers))
    return CategoricalDistribution(sorted({label(value) for value in values}, key=str))


def _setting_of(recipe: Mapping[str, Any], dotted: str) -> Any:
    value: Any = ExperimentConfig.model_validate(recipe).model_dump(mode="json")
    for step in dotted.split("."):
        value = value[step]
    return json.loads(json.dumps(value))


def _per_cent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
