"""`muva ground`: an expert grounds body parts in every image; its answers are pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from muva.errors import SettingsError
from workflows.verb import (
    NAMES,
    json_option,
    override_option,
    print_result,
    recipe_option,
    session_options,
)

if TYPE_CHECKING:
    from workflows.session import Session


def _check_gpus(
    context: click.Context, option: click.Parameter, gpus: float | None
) -> float | None:
    """Check that Ray can allocate so many GPUs: a fraction of one, or a whole number."""
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise click.BadParameter(f"{gpus:g}: expected a fraction up to 1, or a whole number")
    return gpus


@click.command(name="ground")
@click.argument("dataset")
@click.option("--expert", help="The grounding model; `muva experts` lists them. [the recipe's]")
@click.option("--parts", type=NAMES, help="Only these parts of the recipe.")
@click.option(
    "--phrases",
    multiple=True,
    metavar="PART=PHRASE",
    help="Add a part, or change the phrase for one; may be repeated.",
)
@click.option(
    "--actors", "count", type=click.IntRange(min=1), help="Number of processes. [as many as fit]"
)
@click.option(
    "--cpus-per-actor",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="CPU cores per process.",
)
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(min=0),
    callback=_check_gpus,
    help="GPUs per process; with 0.5, two share one. [1 if the cluster has GPUs]",
)
@recipe_option
@override_option
@json_option
@session_options
def ground_verb(
    dataset: str,
    expert: str | None,
    parts: tuple[str, ...] | None,
    phrases: tuple[str, ...],
    count: int | None,
    cpus_per_actor: int,
    gpus_per_actor: float | None,
    recipe: str,
    overrides: tuple[str, ...],
    as_json: bool,
    session: Session,
) -> None:
    """Create part pseudo-labels for DATASET.

    \b
    muva ground syn-station --expert annotated
    muva ground mine --expert grounding-dino --phrases shoes="the shoes"
    muva ground mine --expert florence-2 --set grounding.checkpoint=/models/florence-2-large
    """
    from muva.config import load_recipe, with_settings
    from workflows.runtime.expert_pool import Actors
    from workflows.steps.ground import ground
    from workflows.steps.import_data import datasets_of

    settings = load_recipe(recipe, overrides=overrides)
    changes: dict[str, Any] = {}
    if expert is not None:
        changes["grounding.expert"] = expert
    if settings.grounding is not None and (parts or phrases):
        selected = _select_phrases(settings.grounding.phrases, parts, phrases)
        changes |= {"grounding.phrases": selected, "model.parts": list(selected)}
    settings = with_settings(settings, changes, where=f"{recipe} with these options")
    if settings.grounding is None:
        raise SettingsError(
            f"Recipe {settings.name}: grounding is null, so no expert is named; expected --set "
            "grounding.expert=NAME"
        )
    source = datasets_of(session, [dataset], settings.synthetic)[dataset].artifact
    actors = Actors(count=count, cpus_each=cpus_per_actor, gpus_each=gpus_per_actor)
    [labels] = ground(session, [source], settings.grounding, actors)
    rates = ", ".join(f"{part} {rate:.1%}" for part, rate in labels.summary["found"].items())
    print_result(
        {"artifact": labels.artifact.uri, **labels.summary},
        as_json=as_json,
        text=f"{labels.artifact.uri}\n{labels.summary['images']} images; found: {rates}",
    )


def _select_phrases(
    defaults: Mapping[str, str], parts: Sequence[str] | None, changes: Sequence[str]
) -> dict[str, str]:
    """Part -> phrase: the defaults with changes `part=phrase`, restricted to `parts` if given."""
    phrases = dict(defaults)
    for entry in changes:
        part, equals, phrase = entry.partition("=")
        if not equals:
            raise click.UsageError(
                f"--phrases {entry}: expected PART=PHRASE, for example shoes='the shoes'"
            )
        phrases[part.strip()] = phrase.strip()
    unknown = [part for part in parts or () if part not in phrases]
    if unknown:
        raise click.UsageError(
            f"--parts {','.join(unknown)}: expected some of {', '.join(phrases)}, or a phrase for "
            f"each with --phrases {unknown[0]}='the {unknown[0]}'"
        )
    return {part: phrases[part] for part in parts or phrases}
