"""`muva same`: whether two images show the same person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import muva
from muva.errors import MuvaError
from workflows.verb import json_option, print_result, session_options

if TYPE_CHECKING:
    from workflows.session import Session

IMAGE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("same")
@click.argument("one", type=IMAGE)
@click.argument("other", type=IMAGE)
@click.option(
    "--model",
    default="synthetic",
    show_default=True,
    help="A calibrated model: a name in the store, a URI, or synthetic, the shipped one.",
)
@click.option(
    "--far",
    type=float,
    help="The share of pairs of different people that may pass for the same. [0.001]",
)
@json_option
@session_options
def same_verb(
    one: Path, other: Path, model: str, far: float | None, as_json: bool, session: Session
) -> None:
    """Tell whether the images ONE and OTHER show the same person, and how likely that is.

    The probability is for two images that, before looking, are as likely as not to show the same
    person. Thresholds are what the model's calibration learned from its own camera networks.

    \b
    muva same a.jpg b.jpg
    muva same a.jpg b.jpg --model demo-muva-calibrated --far 0.01 --json
    """
    from workflows.steps.calibrated import Decision, calibration_of
    from workflows.steps.named_model import named_model

    artifact = named_model(session, model)
    calibration = calibration_of(artifact.uri)
    if calibration is None:
        raise MuvaError(
            f"{model} is not calibrated, so its cosines mean no probability. Calibrate it with "
            f"`muva calibrate {model}`, and name the result with --model"
        )
    decision = Decision.at(calibration, far, model=model)
    first, second = muva.load(artifact.uri).embed([one, other])
    cosine = float(first.astype(float) @ second.astype(float))
    same, probability = decision.same(cosine), decision.probability(cosine)
    result = {
        "same_person": same,
        "probability": round(probability, 6),
        "similarity": round(cosine, 6),
        "threshold": decision.threshold,
        "far": decision.far,
        "model": artifact.uri,
    }
    text = (
        f"{'same person' if same else 'not known to be the same person'}: probability "
        f"{100 * probability:.1f} %, cosine {cosine:.3f} "
        f"({'above' if same else 'not above'} {decision.threshold:.3f}, the threshold for a "
        f"false-accept rate of {100 * decision.far:g} %)"
    )
    print_result(result, as_json=as_json, text=text)
