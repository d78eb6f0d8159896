"""`muva doctor`: whether machines, store and MLflow are ready, before work that costs something.

On this machine, or on a cluster: there the checks are a job, whose driver asks every node by a Ray
task. Nothing is changed but a key in the store, which is deleted again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from workflows.verb import (
    cluster_options,
    json_option,
    override_option,
    print_result,
    session_options,
)

if TYPE_CHECKING:
    from workflows.jobs.cluster_settings import ClusterSettings
    from workflows.jobs.readiness import Check
    from workflows.session import Session


@click.command("doctor")
@cluster_options
@click.option("--recipe", help="Also check what this recipe needs: a shipped one, or a YAML file.")
@override_option
@click.option("--report", is_flag=True, hidden=True)
@json_option
@session_options
@click.pass_context
def doctor_verb(
    context: click.Context,
    cluster: ClusterSettings,
    recipe: str | None,
    overrides: tuple[str, ...],
    report: bool,
    as_json: bool,
    session: Session,
) -> None:
    """Check machines, versions, token, store and MLflow; exit code 1 when something must be mended.

    \b
    muva doctor
    muva doctor --recipe demo
    muva doctor --cluster laptop --recipe base --set grounding.expert=florence-2
    """
    from muva.config import load_recipe
    from tracking.source import JOB_VARIABLE
    from workflows.jobs.checks import REPORT, checks_here, checks_inside, checks_on_cluster
    from workflows.jobs.client import ADDRESS_VARIABLES

    if overrides and recipe is None:
        raise click.UsageError("--set changes a setting of a recipe: name it with --recipe")
    config = load_recipe(recipe, overrides=overrides) if recipe is not None else None
    elsewhere = cluster.address or os.environ.get(ADDRESS_VARIABLES[0])
    if elsewhere and JOB_VARIABLE not in os.environ:
        typed = _typed(context, recipe, overrides)
        checks = [*checks_here(), *checks_on_cluster(cluster, elsewhere, typed)]
    else:
        checks = checks_inside(session, config)
    told = [dataclasses.asdict(check) for check in checks]
    if report:
        click.echo(f"{REPORT}{json.dumps(told)}")
        return
    print_result(told, as_json=as_json, text="\n".join(map(_line, checks)))
    if any(check.state == "mend" for check in checks):
        raise click.exceptions.Exit(1)


def _typed(context: click.Context, recipe: str | None, overrides: Sequence[str]) -> list[str]:
    """The options that the job gets: those of the command line, whose defaults differ there."""
    words = ["doctor", "--report"]
    if recipe is not None:
        words += ["--recipe", recipe]
    words += [word for override in overrides for word in ("--set", override)]
    for name in ("home", "store", "tracking_uri"):
        source = context.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE:
            words += [f"--{name.replace('_', '-')}", str(context.params[name])]
    return words


def _line(check: Check) -> str:
    mark = {"ok": "ok  ", "note": "note", "mend": "MEND"}[check.state]
    return f"{mark}  {check.what:<10} {check.where}: {check.said}"
