"""`muva run`: a recipe from data to metrics per domain, a parent run with a child per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from muva.data.artifacts import list_artifacts
from muva.errors import MuvaError
from muva.paper import PROTOCOLS, Row, rows
from tracking.names import experiment_name
from workflows.progress import say
from workflows.verb import (
    NAMES,
    as_text,
    json_option,
    override_option,
    print_result,
    session_options,
    worker_options,
)

if TYPE_CHECKING:
    from muva.config import ExperimentConfig
    from workflows.session import Session


@click.command("run")
@click.argument("recipe", metavar="RECIPE|PROTOCOL")
@click.option("--source", help="For a protocol: only the rows with this source.")
@click.option("--target", help="For a protocol: only this target.")
@click.option("--without", type=NAMES, help="For a protocol: leave out these data sets.")
@click.option(
    "--recipe",
    "settings",
    help="For a protocol: the recipe. [msmt17 to train on MSMT17 alone, else base]",
)
@override_option
@worker_options
@json_option
@session_options
def run_verb(
    recipe: str,
    source: str | None,
    target: str | None,
    without: tuple[str, ...] | None,
    settings: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Run RECIPE, a shipped name or a YAML file, from data to metrics per domain.

    Or run PROTOCOL, all rows of a standard table: single-source, leave-one-out, classical or
    same-domain. `muva compare` shows the results beside the published ones.

    \b
    muva run demo
    muva run base --set sources=[market1501] --set targets=[mine]
    muva run single-source --source market1501
    muva run leave-one-out --target msmt17 --without dukemtmc
    """
    from muva.config import load_recipe, to_yaml
    from workflows.results.tables import pipeline_table, warn_of_few_queries
    from workflows.steps.pipeline import as_data, run_recipe

    if recipe in PROTOCOLS:
        chosen = rows(recipe, source=source, target=target, without=without or ())
        configs = [_config_of(row, settings, overrides) for row in chosen]
    elif source or target or without or settings:
        raise click.UsageError(
            "--source, --target, --without and --recipe select rows of a protocol; set the domains "
            f"of a recipe with --set. Protocols: {', '.join(PROTOCOLS)}."
        )
    else:
        configs = [load_recipe(recipe, overrides=overrides)]
    _check_imported(session, configs)
    reports, tables = [], []
    for config in configs:
        say(to_yaml(config))
        within = dataclasses.replace(
            session, experiment=experiment_name(recipe if recipe in PROTOCOLS else config.name)
        )
        report = run_recipe(within, config)
        reports.append(as_data(report))
        tables.append(as_text(pipeline_table(config, report)))
        for target, results in report.targets.items():
            warn_of_few_queries(target, next(iter(results.values())))
    data = reports[0] if recipe not in PROTOCOLS else reports
    print_result(data, as_json=as_json, text="\n".join(tables))


def _config_of(row: Row, recipe: str | None, overrides: Sequence[str]) -> ExperimentConfig:
    """The settings of a protocol's row: the recipe's, with the row's domains."""
    from muva.config import load_recipe, with_overrides, with_settings

    name = recipe or ("msmt17" if row.sources == ("msmt17",) else "base")
    config = load_recipe(name)
    config = with_settings(config, row.settings, where=f"{name} for {row.protocol}")
    return with_overrides(config, overrides, where=name)


def _check_imported(session: Session, configs: Sequence[ExperimentConfig]) -> None:
    """Check that every data set is in the store before the first of many trainings begins."""
    from muva.data.benchmarks import BENCHMARKS

    needed = {name for config in configs for name in (*config.sources, *config.targets)}
    present = {artifact.name for artifact in list_artifacts(session.store, "datasets")}
    missing = sorted((needed - present) & set(BENCHMARKS))
    if missing:
        raise MuvaError(
            f"these data sets are not imported: {', '.join(missing)}. Import each with `muva data "
            "import NAME --from FOLDER`, or leave it out with --without NAME"
        )
