"""`muva calibrate`: what a model's cosines mean, as probabilities and thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    from muva.data.artifacts import Artifact
    from workflows.session import Session


@click.command("calibrate")
@click.argument("model")
@click.option(
    "--on",
    type=NAMES,
    help="Data sets whose query and gallery images show people whom the model was not trained on. "
    "[the model's sources]",
)
@click.option("--name", help="The name of the calibrated model. [MODEL-calibrated]")
@recipe_option
@override_option
@json_option
@session_options
def calibrate_verb(
    model: str,
    on: tuple[str, ...] | None,
    name: str | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Learn what MODEL's cosines mean, from people of its sources whom it was not trained on.

    The result is a model with the same features, which also gives the probability that two images
    show the same person, and thresholds for false-accept rates. A target takes no part in it.

    \b
    muva calibrate demo-muva --recipe demo
    muva calibrate demo-muva --on syn-boulevard,syn-harbour --name calibrated --json
    """
    from muva.config import load_recipe
    from muva.data.benchmarks.listing import some
    from muva.model.bundle_description import CALIBRATION
    from muva.models import model_description
    from muva.retrieval.calibration import Calibration
    from workflows.results.tables import calibration_table
    from workflows.runtime.on_demand import cluster_on_demand
    from workflows.steps.calibrate import calibrate_model
    from workflows.steps.import_data import datasets_of
    from workflows.steps.named_model import named_model

    config = load_recipe(recipe, overrides=overrides)
    artifact = named_model(session, model)
    sources = model_description(artifact)["metadata"].get("source_names", ())
    if others := [name for name in on or () if name not in sources]:
        say(f"Not a source of {artifact.name}, and no unseen domain any more: {some(others)}.")
    with cluster_on_demand():
        datasets = datasets_of(session, on or sources, config.synthetic)
        found = {key: result.artifact for key, result in datasets.items()}
        result = calibrate_model(
            session,
            artifact,
            found if on else _with_people_for_tests(found, artifact),
            name=name or f"{artifact.name}-calibrated",
        )
    calibration = Calibration.from_json(result.summary[CALIBRATION])
    described: dict[str, Any] = {
        "model": result.artifact.uri,
        "calibrated": artifact.uri,
        **calibration.as_json(),
    }
    text = f"{as_text(calibration_table(calibration))}\nmodel: {result.artifact.uri}"
    print_result(described, as_json=as_json, text=text)


def _with_people_for_tests(sources: dict[str, Artifact], model: Artifact) -> dict[str, Artifact]:
    """The sources that have query and gallery images.

    Raises:
        MuvaError: none has.
    """
    from muva.data.shards import open_dataset
    from muva.errors import MuvaError

    usable, lacking = {}, []
    for name, artifact in sources.items():
        if {"query", "gallery"} <= {*open_dataset(artifact).summary.splits}:
            usable[name] = artifact
        else:
            lacking.append(name)
    if not usable:
        raise MuvaError(
            f"{model.name}: expected sources with query and gallery images, which show people whom "
            f"it was not trained on; found none ({_listed(lacking)}). Name data sets of other "
            "people with --on; no target, which would not be unseen any more"
        )
    if lacking:
        say(f"{_listed(lacking)}: left out, without query and gallery images.")
    return usable


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "the model names no sources"
