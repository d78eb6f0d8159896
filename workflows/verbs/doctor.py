"""`muva doctor`: checks whether machines, store and MLflow are ready before expensive work.

It checks this machine or a cluster, where the checks are a job whose driver checks every node with
a Ray task. They change nothing but one key in the store, which is deleted again.
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
@click.option("--recipe", help="Also check the needs of this recipe: a shipped one or a YAML file.")
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
    """Check machines, versions, token, store and MLflow; exit code 1 if something must be fixed.

    \b
    muva doctor
    muva doctor --recipe demo
    muva doctor --cluster laptop --recipe base --set grounding.expert=florence-2
    """
    from muva.config import load_recipe
    from tracking.source import JOB_VARIABLE
    from workflows.jobs.checks import (
        REPORT,
        driver_checks,
        local_version_checks,
        remote_cluster_checks,
    )
    from workflows.jobs.client import dashboard_of_environment

    if overrides and recipe is None:
        raise click.UsageError("--set changes a setting of a recipe: name it with --recipe")
    config = load_recipe(recipe, overrides=overrides) if recipe is not None else None
    address = cluster.address or dashboard_of_environment()
    if address and JOB_VARIABLE not in os.environ:
        command = _job_command(context, recipe, overrides)
        checks = [*local_version_checks(), *remote_cluster_checks(cluster, address, command)]
    else:
        checks = driver_checks(session, config)
    data = [dataclasses.asdict(check) for check in checks]
    if report:
        click.echo(f"{REPORT}{json.dumps(data)}")
        return
    print_result(data, as_json=as_json, text="\n".join(map(_line, checks)))
    if any(check.state == "fail" for check in checks):
        raise click.exceptions.Exit(1)


def _job_command(context: click.Context, recipe: str | None, overrides: Sequence[str]) -> list[str]:
    """The job's command: it gets only the options that were typed, because its defaults differ."""
    argv = ["doctor", "--report"]
    if recipe is not None:
        argv += ["--recipe", recipe]
    argv += [word for override in overrides for word in ("--set", override)]
    for name in ("home", "store", "tracking_uri"):
        source = context.get_parameter_source(name)
        if source is click.core.ParameterSource.COMMANDLINE:
            argv += [f"--{name.replace('_', '-')}", str(context.params[name])]
    return argv


def _line(check: Check) -> str:
    level = {"ok": "ok  ", "note": "note", "fail": "FAIL"}[check.state]
    return f"{level}  {check.what:<10} {check.where}: {check.said}"
