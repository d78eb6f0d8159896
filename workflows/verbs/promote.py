"""`muva promote`: the best model on held-out sources becomes the champion in MLflow's registry.

Nothing else moves the aliases. Targets play no role: a model that was trained without held-out
people cannot be promoted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from workflows.verb import json_option, print_result, session_options

if TYPE_CHECKING:
    from workflows.session import Session


@click.command("promote")
@click.argument("model")
@click.option("--as", "name", default="muva", show_default=True, help="The registered model.")
@json_option
@session_options
def promote_verb(model: str, name: str, as_json: bool, session: Session) -> None:
    """Register MODEL in MLflow, as champion if it beats the present one on held-out sources.

    Otherwise MODEL becomes the challenger. A champion that is beaten becomes the challenger. MLflow
    loads and serves the best model as `models:/NAME@champion`.

    \b
    muva promote muva-chosen
    muva promote muva-chosen --as people-of-our-station
    """
    from workflows.results.promotion import promote
    from workflows.steps.named_model import named_model

    versions = promote(session, named_model(session, model), name=name)
    lines = [
        f"{alias}: version {one['number']}, {one['address']}, held-out mAP {100 * one['value']:.1f}"
        for alias, one in versions.items()
        if one is not None
    ]
    print_result(versions, as_json=as_json, text="\n".join(lines))
