"""`muva evaluate`: how well a model recognises people in camera networks that it has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import muva
from workflows.progress import say
from workflows.verb import (
    NAMES,
    as_text,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)

if TYPE_CHECKING:
    from muva.config import ExperimentConfig
    from workflows.session import Session
    from workflows.steps.evaluate import TargetReport


@click.command("evaluate")
@click.argument("model", required=False)
@click.option("--targets", type=NAMES, help="Data sets to judge on.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Instead of a model: a .parquet or .npz of features that any program wrote.",
)
@recipe_option
@override_option
@json_option
@session_options
def evaluate_verb(
    model: str | None,
    targets: tuple[str, ...] | None,
    features: Path | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Judge MODEL on target domains.

    MODEL is a name in the store, a URI, or clip:NAME for a CLIP as it is. A features file holds
    features, ids, pids and, where known, camids and split (query, gallery).

    \b
    muva evaluate muva --targets syn-station
    muva evaluate clip:tiny --targets syn-station --recipe demo
    muva evaluate --features features.parquet
    """
    from muva.config import load_recipe
    from workflows.results.tables import evaluation_table
    from workflows.steps.evaluate import evaluate_file

    config = load_recipe(recipe, overrides=overrides)
    if (features is None) == (model is None):
        raise click.UsageError("Expected either a MODEL with --targets, or --features FILE.")
    if features is not None and targets:
        raise click.UsageError("--targets are for a MODEL; a features file is its own target.")
    if features is not None:
        reports = {features.stem: evaluate_file(session, features, config)}
        title = f"Features in {features}"
    else:
        assert model is not None
        if not targets:
            raise click.UsageError("--targets is missing: which data sets is the model judged on?")
        reports, title = _judge_model(session, model, targets, config)
    for target, found in reports.items():
        if not found.cameras_known:
            say(f"{target}: cameras are unknown, so each query ignored only its own image.")
    print_result(
        {target: dataclasses.asdict(found) for target, found in reports.items()},
        as_json=as_json,
        text=as_text(evaluation_table(reports, title=title)),
    )


def _judge_model(
    session: Session, model: str, targets: Sequence[str], config: ExperimentConfig
) -> tuple[dict[str, TargetReport], str]:
    from muva.model.clip import check_clip
    from muva.models import find_model
    from workflows.runtime.cluster import ray_cluster
    from workflows.steps.embed import UNTOUCHED
    from workflows.steps.evaluate import evaluate_on
    from workflows.steps.import_data import datasets_of

    uri, name = model, UNTOUCHED.rstrip(":")
    if model.startswith(UNTOUCHED):
        check_clip(model.removeprefix(UNTOUCHED))
    else:
        artifact = find_model(session.store, model)
        uri, name = artifact.uri, artifact.name
        bundle = muva.load(uri)
        config = config.model_copy(update={"model": bundle.model.config})
        learned = {source.rpartition("-")[0] for source in bundle.metadata.get("sources", ())}
        for seen in learned.intersection(targets):
            say(f"{seen} is a source of this model: its figures are not those of an unseen domain.")
    with ray_cluster():
        datasets = datasets_of(session, targets, config.synthetic)
        reports = {
            target: evaluate_on(session, uri, done.artifact, config, name=name)
            for target, done in datasets.items()
        }
    return reports, f"Judged: {uri}"
