"""`muva ground`: an expert finds the body parts of every image; its answers are pseudo-labels."""

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


def _a_share(context: click.Context, option: click.Parameter, gpus: float | None) -> float | None:
    """A part of a GPU, or whole ones: what Ray gives."""
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise click.BadParameter(f"{gpus:g}: expected a share up to 1, or a whole number")
    return gpus


@click.command(name="ground")
@click.argument("dataset")
@click.option("--expert", help="Who looks; `muva experts` lists them. [the recipe's]")
@click.option("--parts", type=NAMES, help="Only these of the recipe's parts.")
@click.option(
    "--phrases",
    multiple=True,
    metavar="PART=PHRASE",
    help="Another part, or another phrase for one; may be repeated.",
)
@click.option("--actors", "count", type=click.IntRange(min=1), help="Processes. [all that fit]")
@click.option(
    "--cpus-per-actor",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cores of each.",
)
@click.option(
    "--gpus-per-actor",
    type=click.FloatRange(min=0),
    callback=_a_share,
    help="0.5: two share one. [1, if there are]",
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
    """Make part pseudo-labels for DATASET.

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
        asked = _asked(settings.grounding.phrases, parts, phrases)
        changes |= {"grounding.phrases": asked, "model.parts": list(asked)}
    settings = with_settings(settings, changes, where=f"{recipe} with the options given")
    if settings.grounding is None:
        raise SettingsError(
            f"Recipe {settings.name}: grounding is null, which names no expert; expected "
            "--set grounding.expert=NAME"
        )
    source = datasets_of(session, [dataset], settings.synthetic)[dataset].artifact
    actors = Actors(count=count, cpus_each=cpus_per_actor, gpus_each=gpus_per_actor)
    [done] = ground(session, [source], settings.grounding, actors)
    found = ", ".join(f"{part} {share:.1%}" for part, share in done.summary["found"].items())
    print_result(
        {"artifact": done.artifact.uri, **done.summary},
        as_json=as_json,
        text=f"{done.artifact.uri}\n{done.summary['images']} images; found: {found}",
    )


def _asked(
    known: Mapping[str, str], parts: Sequence[str] | None, given: Sequence[str]
) -> dict[str, str]:
    """Part -> phrase: the recipe's, with others as `part=phrase`, and of them all only `parts`."""
    phrases = dict(known)
    for entry in given:
        part, equals, phrase = entry.partition("=")
        if not equals:
            raise click.UsageError(f"--phrases {entry}: expected PART=PHRASE, as shoes='the shoes'")
        phrases[part.strip()] = phrase.strip()
    unknown = [part for part in parts or () if part not in phrases]
    if unknown:
        raise click.UsageError(
            f"--parts {','.join(unknown)}: expected some of {', '.join(phrases)}, or a phrase for "
            f"each with --phrases {unknown[0]}='the {unknown[0]}'"
        )
    return {part: phrases[part] for part in parts or phrases}
