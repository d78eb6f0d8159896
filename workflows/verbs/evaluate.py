"""`muva evaluate`: how well a model recognises people in camera networks it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    from workflows.steps.evaluate import Evaluation


@click.command("evaluate")
@click.argument("model", required=False)
@click.option("--targets", type=NAMES, help="Data sets to evaluate on.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Instead of a model: a .parquet or .npz file of features from any program.",
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
    """Evaluate MODEL on target domains.

    MODEL is a name in the store, a URI, synthetic (the shipped model), or clip:NAME for zero-shot
    CLIP. A file of features contains features, ids, pids and, if known, camids and splits (query,
    gallery).

    \b
    muva evaluate muva --targets syn-station
    muva evaluate clip:tiny --targets syn-station --recipe demo
    muva evaluate --features features.parquet
    """
    from muva.config import load_recipe
    from workflows.results.tables import (
        delivered_table,
        evaluation_table,
        verification_table,
        warn_of_few_queries,
    )
    from workflows.steps.evaluate import evaluate_file

    config = load_recipe(recipe, overrides=overrides)
    if (features is None) == (model is None):
        raise click.UsageError("Expected either a MODEL with --targets, or --features FILE.")
    if features is not None and targets:
        raise click.UsageError("--targets is for a MODEL; a file of features is its own target.")
    if features is not None:
        evaluations = {features.stem: evaluate_file(session, features, config)}
        title = f"Features in {features}"
    else:
        assert model is not None
        if not targets:
            raise click.UsageError(
                "--targets is missing: on which data sets should the model be evaluated?"
            )
        evaluations, title = _evaluate_model(session, model, targets, config)
    for target, evaluation in evaluations.items():
        if not evaluation.scores.cameras_known:
            say(f"{target}: cameras are unknown, so queries ignored only their own image.")
        warn_of_few_queries(target, evaluation.scores)
    scores_of = {target: evaluation.scores for target, evaluation in evaluations.items()}
    tables = [evaluation_table(scores_of, title=title), verification_table(scores_of)]
    tables.append(delivered_table(scores_of))
    print_result(
        {target: evaluation.as_json() for target, evaluation in evaluations.items()},
        as_json=as_json,
        text="\n".join(as_text(table) for table in tables if table is not None),
    )


def _evaluate_model(
    session: Session, model: str, targets: Sequence[str], config: ExperimentConfig
) -> tuple[dict[str, Evaluation], str]:
    from muva.config.schema import ModelConfig
    from muva.model.bundle_description import CALIBRATION
    from muva.model.checks import check_clip
    from muva.models import model_description
    from workflows.runtime.on_demand import cluster_on_demand
    from workflows.steps.embed import UNTRAINED
    from workflows.steps.evaluate import evaluate_on
    from workflows.steps.import_data import datasets_of
    from workflows.steps.named_model import named_model

    uri, name = model, UNTRAINED.rstrip(":")
    if model.startswith(UNTRAINED):
        check_clip(model.removeprefix(UNTRAINED))
    else:
        artifact = named_model(session, model)
        uri, name = artifact.uri, artifact.name
        description = model_description(artifact)
        config = config.model_copy(
            update={"model": ModelConfig.model_validate(description["model"])}
        )
        sources = description["metadata"].get("source_names", ())
        for shared in sorted({*sources} & {*targets}):
            say(f"The model was trained on {shared}: its scores are not those of an unseen domain.")
        calibration = description["metadata"].get(CALIBRATION, {"datasets": ()})
        for shared in sorted({*calibration["datasets"]} & {*targets}):
            say(f"The model's thresholds were learned on {shared}: they promise nothing new there.")
    with cluster_on_demand():
        datasets = datasets_of(session, targets, config.synthetic)
        evaluations = {
            target: evaluate_on(session, uri, result.artifact, config, name=name)
            for target, result in datasets.items()
        }
    return evaluations, f"Evaluated: {uri}"
