"""`muva tune`: searches for settings, which it evaluates on source domains held out in turn.

`muva tune SPACE` searches, `muva tune show` shows the trials, `muva tune best` writes the best one
as a recipe. The search never reads a target.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from muva.errors import MuvaError, SettingsError
from tracking.names import experiment_name
from workflows.progress import say
from workflows.verb import (
    as_text,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
    worker_options,
)

if TYPE_CHECKING:
    from muva.config import ExperimentConfig
    from workflows.session import Session
    from workflows.tuning.study import Study


class _SearchByDefault(click.Group):
    """`tune SPACE` is `tune search SPACE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Prepends `search` unless the first word is a subcommand."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["search", *args]
        return super().parse_args(ctx, args)


@click.group("tune", cls=_SearchByDefault)
def tune_verb() -> None:
    """Search for settings, evaluated on source domains held out in turn.

    SPACE is prompts, masks, all, or your own YAML file. The default is the space in the recipe's
    section tune.

    \b
    muva tune SPACE --recipe RECIPE --trials 20    search, like muva tune search
    muva tune show                                 show trials and the importance of settings
    muva tune best --recipe out.yaml               write the best trial as a recipe
    """


@tune_verb.command("search")
@click.argument("space", required=False)
@click.option(
    "--trials", type=click.IntRange(min=1), help="Total number of trials. [the recipe's, or 4]"
)
@click.option(
    "--budget-hours",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop the search, including its running trials, after this many hours.",
)
@click.option(
    "--objective", metavar="mean|worst|both|DOMAIN", help="mAP on the held-out domains. [mean]"
)
@click.option(
    "--folds", type=click.IntRange(min=1), help="Number of domains to hold out in turn. [all]"
)
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds per trial and fold. [1]")
@click.option(
    "--search",
    "method",
    type=click.Choice(["tpe", "nsga2", "random", "grid"]),
    help="The search algorithm. [tpe]",
)
@click.option(
    "--scheduler",
    type=click.Choice(["none", "asha", "median"]),
    help="How to stop poor trials early. [none]",
)
@click.option(
    "--concurrent",
    type=click.IntRange(min=1),
    help="Number of concurrent trials. [as many as the cluster can run]",
)
@recipe_option
@override_option
@worker_options
@json_option
@session_options
def search_verb(
    space: str | None,
    trials: int | None,
    budget_hours: float | None,
    objective: str | None,
    folds: int | None,
    seeds: int | None,
    method: str | None,
    scheduler: str | None,
    concurrent: int | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Search SPACE, with RECIPE's values for all other settings. Run it again to resume.

    \b
    muva tune masks --recipe demo --trials 20 --budget-hours 1
    muva tune search all --recipe demo --objective both --search nsga2 --scheduler asha
    """
    from muva.config import load_recipe
    from workflows.runtime.on_demand import cluster_on_demand
    from workflows.runtime.workers import Workers
    from workflows.steps.ground import ground
    from workflows.steps.import_data import datasets_of
    from workflows.steps.train import check_training
    from workflows.tuning.report import reuse_text, trials_table
    from workflows.tuning.search import check_search, search
    from workflows.tuning.trial import folds_of

    config = load_recipe(recipe, overrides=overrides)
    workers = Workers.of(config.execution)
    options = {
        "space": space,
        "trials": trials,
        "budget_hours": budget_hours,
        "objective": objective,
        "folds": folds,
        "seeds": seeds,
        "search": method,
        "scheduler": scheduler,
        "concurrent_trials": concurrent,
    }
    changes = {key: value for key, value in options.items() if value is not None}
    config = _with_search_options(config, changes)
    settings = check_search(config).settings
    session = dataclasses.replace(session, experiment=experiment_name(config.name))
    with cluster_on_demand():
        imports = datasets_of(session, config.sources, config.synthetic)
        sources = [one.artifact for one in imports.values()]
        for fold in range(folds_of(settings, len(sources))):
            without = config.model_copy(update={"validation": None})
            check_training(without, [*sources[:fold], *sources[fold + 1 :]], workers)
        labels = []
        if config.grounding is not None and config.model.parts:
            labels = [one.artifact for one in ground(session, sources, config.grounding)]
        result = search(session, config, sources=sources, labels=labels, workers=workers)
    text = f"{as_text(trials_table(result.summary))}\n{reuse_text(result.summary['reuse'])}"
    print_result(result.summary, as_json=as_json, text=text)


def _with_search_options(config: ExperimentConfig, options: dict[str, Any]) -> ExperimentConfig:
    """The recipe with the command line's options in its section tune."""
    from muva.config import TuneConfig, with_settings
    from muva.config.search_space import shipped_spaces

    if config.tune is None and "space" not in options:
        raise SettingsError(
            f"Recipe {config.name}: expected a section tune, found none, or a SPACE to search: "
            f"one of {', '.join(shipped_spaces())}, or a YAML file"
        )
    settings = (config.tune or TuneConfig()).model_dump(mode="json")
    return with_settings(config, {"tune": {**settings, **options}}, where=config.name)


@tune_verb.command("show")
@click.argument("study", required=False)
@json_option
@session_options
def show_verb(study: str | None, as_json: bool, session: Session) -> None:
    """Show the trials of STUDY.

    It also shows their progress and the importance of settings. STUDY is by default the newest; its
    search may still be running.

    \b
    muva tune show
    muva tune show demo-masks --json
    """
    from workflows.tuning.report import ENOUGH, NAMES, history, importance, reuse_text, trials_table
    from workflows.tuning.search import summary_of
    from workflows.tuning.study import find_study

    opened = find_study(session.store, study)
    records = opened.finished()
    summary = summary_of(opened)
    shares = importance(opened, records)
    data = {
        **summary,
        "running": opened.begun(),
        "importance": shares,
        "history": history(opened, records),
    }
    pieces = [as_text(trials_table(summary))] if records else ["No trial has finished yet."]
    if opened.begun():
        pieces.append(f"Started but not finished: {len(opened.begun())}")
    if shares:
        rows = [f"  {100 * share:5.1f} %  {name}" for name, share in shares.items()]
        pieces.append("\n".join(["Share of the first objective's variance by setting:", *rows]))
    elif records:
        pieces.append(f"The importance of settings needs {ENOUGH} different complete trials.")
    if data["history"]:
        pieces.append(
            _improvements(data["history"], NAMES.get(opened.objectives[0], opened.objectives[0]))
        )
    pieces.append(reuse_text(summary["reuse"]))
    if records:
        _draw(session, opened, summary)
    print_result(data, as_json=as_json, text="\n\n".join(pieces))


def _improvements(trials: list[tuple[int, float, float]], objective: str) -> str:
    steps = [f"trial {number}: {100 * best:.1f}" for number, value, best in trials if value == best]
    return f"Best {objective} so far, at {', '.join(steps)}"


def _draw(session: Session, study: Study, summary: dict[str, Any]) -> None:
    """Log pictures to the study's existing run, whichever run is its parent."""
    from tracking.connection import attached_client, failures_explained
    from tracking.names import ARTIFACT_TAG
    from tracking.runs import Run
    from tracking.tagged_runs import runs_with_tag
    from workflows.tuning.report import log_study

    uri = session.tracking_uri
    assert uri is not None
    with failures_explained(uri):
        for tagged in runs_with_tag(uri, ARTIFACT_TAG):
            if tagged.value == study.artifact.address:
                run = Run(tagged.ref, attached_client(tagged.ref.tracking_uri))
                log_study(run, study, summary)
                return
    say("MLflow has no run of this search, so no pictures were drawn.")


@tune_verb.command("best")
@click.argument("study", required=False)
@click.option(
    "--recipe",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the recipe to this YAML file, for `muva run`.",
)
@json_option
@session_options
def best_verb(study: str | None, out: Path | None, as_json: bool, session: Session) -> None:
    """Print the best trial of STUDY as a recipe.

    STUDY is by default the newest. Domains and numbers of epochs are those of the search's recipe,
    not those of its trials.

    \b
    muva tune best --recipe tuned.yaml && muva run tuned.yaml
    """
    from muva.config import to_yaml
    from workflows.tuning.report import NAMES, short
    from workflows.tuning.study import best_of, best_recipe, find_study
    from workflows.tuning.trial import DEVIATION, MEAN, WORST

    opened = find_study(session.store, study)
    best = best_of(opened, opened.finished())
    text = to_yaml(best_recipe(opened, best))
    values = [
        f"{NAMES.get(objective, objective)} {100 * best['metrics'][objective]:.1f}"
        for objective in dict.fromkeys((MEAN, WORST, *opened.objectives))
    ]
    if DEVIATION in best["metrics"]:
        values.append(f"deviation between seeds {100 * best['metrics'][DEVIATION]:.1f}")
    note = f"# Trial {best['number']} of {opened.artifact.address}: {', '.join(values)}\n"
    if out is not None:
        try:
            out.write_text(note + text, encoding="utf-8")
        except OSError as error:
            raise MuvaError(
                f"{out} cannot be written ({error.strerror}): name another file with --recipe"
            ) from error
    where = f"\nWritten to {out}; run it with `muva run {out}`" if out else f"\n\n{text}"
    print_result(
        {"trial": best["number"], "params": best["params"], "metrics": best["metrics"]},
        as_json=as_json,
        text=f"Trial {best['number']}: {', '.join(values)}\n{short(best['params'])}{where}",
    )
