"""Reports of a search: its trials, the importance of settings, its history; plots in MLflow."""

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
"""The number of complete trials from which on the importance of settings is shown."""
COLUMNS = 4
"""Up to this number of searched settings, each has a column of its own."""
NAMES = {MEAN: "held-out mAP", WORST: "worst domain"}


def importance(study: Study, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of each setting in the variance of the first objective (fANOVA), largest first.

    A setting that a trial did not draw has the value of the recipe. Empty for too few trials.
    """
    done = [record for record in records if record["state"] == "complete"]
    if len(done) < ENOUGH or len({record["metrics"][study.objectives[0]] for record in done}) == 1:
        return {}
    points = [whole_point(study, record["params"]) for record in done]
    varied = [name for name in points[0] if len({label(point[name]) for point in points}) > 1]
    if not varied:
        return {}
    trials_study = optuna.create_study(direction="maximize")
    distributions = {name: _over([point[name] for point in points]) for name in varied}
    for point, record in zip(points, done, strict=True):
        trials_study.add_trial(
            optuna.trial.create_trial(
                params={name: label(point[name]) for name in varied},
                distributions=distributions,
                value=record["metrics"][study.objectives[0]],
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(trials_study, evaluator=evaluator))


def whole_point(study: Study, params: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every searched setting: that of the trial, or of the recipe if it drew none."""
    base = study.recipe
    return {
        name: params[name] if name in params else _setting_of(base, name)
        for name in study.config["space"]["settings"]
    }


def history(study: Study, records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float, float]]:
    """Number, value and best value so far of the complete trials, for the first objective."""
    rows, best = [], float("-inf")
    for record in sorted(records, key=lambda record: record["number"]):
        if record["state"] == "complete":
            value = record["metrics"][study.objectives[0]]
            best = max(best, value)
            rows.append((record["number"], value, best))
    return rows


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
        cells = [_per_cent(trial["metrics"].get(objective)) for objective in shown]
        if trial["state"] != "complete":
            cells[0] = f"{cells[0]} {trial['state']}".strip()
        if several:
            cells.append(_per_cent(trial["metrics"].get(DEVIATION)))
        table.add_row(
            f"{trial['number']}{note}", *map(escape, values), *cells, str(trial["seconds"])
        )
    return table


def short(params: Mapping[str, Any]) -> str:
    """The settings in one line, without their sections."""
    words = []
    for name, value in params.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(label(value))
        words.append(f"{name.partition('.')[2]}={shown}")
    return " ".join(words)


def reuse_text(reuse: Mapping[str, Any]) -> str:
    """One or two sentences on the steps that trials shared."""
    if not reuse["used"]:
        return "No step has been used yet."
    shared = [
        f"{kind} {one['used']:.0f} times, made {one['computed']:.0f} times"
        for kind, one in reuse["kinds"].items()
        if one["used"] > one["computed"]
    ]
    if not shared:
        return "No two trials shared a step."
    return (
        f"Steps that trials shared: {'; '.join(shared)}. That saved {reuse['saved_s']:.0f} s of "
        f"{reuse['alone_s']:.0f} s ({100 * reuse['saved']:.0f} %)."
    )


def log_study(run: Run, study: Study, summary: Mapping[str, Any]) -> None:
    """Log the best trial's metrics, a table, and plots to the study's run."""
    from tracking.tuning_pictures import history_plot, importance_plot, parallel_coordinates

    records = study.finished()
    complete = [
        record for record in ranked(records, study.objectives) if record["state"] == "complete"
    ]
    if complete:
        best = complete[0]
        run.log_metrics(best["metrics"])
        run.set_tags({f"best.{name}": str(value) for name, value in best["params"].items()})
    reuse = summary["reuse"]
    run.log_metrics({"reuse/saved": reuse["saved"], "reuse/saved-seconds": reuse["saved_s"]})
    run.set_description(f"{_markdown(summary)}\n\n{reuse_text(reuse)}")
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
