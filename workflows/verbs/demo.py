"""`muva demo`: the whole workflow on synthetic people, in minutes and without any download.

Renders four camera networks, grounds body parts, trains on three networks and recognises people in
the fourth, with zero-shot CLIP, the global-only baseline and MUVA. Then searches for
settings with a few short trials on held-out sources, and runs one verb as a Ray job. A second run
computes nothing again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from muva.errors import MuvaError, SettingsError
from tracking.names import experiment_name
from tracking.redaction import redact
from workflows.progress import say
from workflows.verb import (
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


@click.command("demo")
@click.option("--recipe", default="demo", hidden=True)
@override_option
@worker_options
@json_option
@session_options
def demo_verb(recipe: str, overrides: tuple[str, ...], as_json: bool, session: Session) -> None:
    """Run the whole workflow on synthetic people, without a GPU, data or downloads.

    \b
    muva demo
    muva demo --set seed=1 --home runs-1
    """
    from muva.config import load_recipe, to_yaml
    from workflows.results.tables import pipeline_table, warn_of_few_queries
    from workflows.runtime.workers import Workers
    from workflows.steps.pipeline import as_data, recipe_run
    from workflows.tuning.report import trials_table
    from workflows.tuning.search import check_search, search

    started_at = time.monotonic()
    config = load_recipe(recipe, overrides=overrides)
    if "muva" not in config.variants or config.tune is None or not config.model.parts:
        raise SettingsError(
            f"Recipe {config.name}: the demo needs the variant muva, parts and a section tune. Run "
            "other recipes with `muva run`"
        )
    check_search(config)
    session = dataclasses.replace(session, experiment=experiment_name(config.name))
    folder = session.home / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise MuvaError(
            f"{folder} cannot be written ({error.strerror}): name another folder with --home"
        ) from error
    say(f"Settings: {folder / 'config.yaml'}")
    with recipe_run(session, config) as (run, children, report):
        tuned = search(
            children,
            config,
            sources=[report.datasets[name] for name in config.sources],
            labels=[report.labels[name] for name in config.sources],
            workers=Workers.of(config.execution),
        )
        report.note("tune", tuned)
    job_started_at = time.monotonic()
    _submit_evaluation(report.models["muva"], config, session)
    report.seconds["submit"] = round(time.monotonic() - job_started_at, 2)
    for target, results in report.targets.items():
        warn_of_few_queries(target, next(iter(results.values())))
    report.seconds["total"] = round(time.monotonic() - started_at, 2)
    content = as_data(report)
    if run is not None:
        content["mlflow"] = {
            "tracking_uri": redact(str(session.tracking_uri)),
            "experiment_id": run.ref.experiment_id,
            "run_id": run.ref.run_id,
        }
    report_file = folder / "report.json"
    report_file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = "\n\n".join(
        [
            as_text(trials_table(tuned.summary)),
            as_text(pipeline_table(config, report)),
            _locations(report_file, session),
        ]
    )
    print_result(content, as_json=as_json, text=text)


def _submit_evaluation(model: str, config: ExperimentConfig, session: Session) -> None:
    """Submit the evaluation as a job, which finds its artifacts and prints the table.

    The job runs on the cluster that the environment names, else on a head that already runs on this
    machine, else on a head that is started for it.
    """
    from workflows.jobs.client import address_of_environment
    from workflows.jobs.cluster_settings import ClusterSettings
    from workflows.jobs.head import temporary_head
    from workflows.jobs.submit import submit_and_follow

    argv = ["evaluate", model, "--targets", ",".join(config.targets)]
    argv += ["--recipe", str(session.home / "demo" / "config.yaml"), "--home", str(session.home)]
    argv += ["--store", session.store.uri]
    tracking_uri = str(session.tracking_uri)
    if redact(tracking_uri) == tracking_uri:  # an address with a secret is set in the environment
        argv += ["--tracking-uri", tracking_uri]
    say(f"submit evaluate {Path(model).name} as a Ray job …")
    with nullcontext() if address_of_environment() else temporary_head() as address:
        code = submit_and_follow(argv, cluster=ClusterSettings(address=address), upload=False)
    if code:
        raise MuvaError(
            f"The job that evaluates {model} ended with exit code {code}; its log is above. Run "
            "the same command again to resume"
        )


def _locations(report: Path, session: Session) -> str:
    return "\n".join(
        [
            f"Report:    {report}",
            f"Pictures:  {session.home / 'mlartifacts'}",
            "Browse:    muva ui   (in .venv/bin)",
        ]
    )
