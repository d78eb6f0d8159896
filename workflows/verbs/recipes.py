"""`muva recipes`: the shipped recipes and how their settings differ from the paper's."""

from __future__ import annotations

from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from workflows.verb import as_text, json_option, print_result

METADATA = ("name", "description")


def described_recipes() -> list[dict[str, Any]]:
    """Name, description, and dotted setting -> value where a shipped recipe differs from `base`."""
    from muva.config import differences, load_recipe, shipped_recipes

    base = load_recipe("base")
    recipes = []
    for name in shipped_recipes():
        config = load_recipe(name)
        changes = differences(config, base)
        recipes.append(
            {
                "name": name,
                "description": config.description,
                "changes": {key: v for key, v in changes.items() if key not in METADATA},
            }
        )
    return recipes


@click.command("recipes")
@click.argument("name", metavar="[NAME]", required=False)
@json_option
def recipes_verb(name: str | None, as_json: bool) -> None:
    """List the shipped recipes and how they differ from the paper's settings, or print NAME's.

    \b
    muva recipes
    muva recipes msmt17
    muva run single-source --source market1501 --recipe ablation-gating-online
    """
    from muva.config import load_recipe, to_yaml

    if name is not None:
        config = load_recipe(name)
        print_result(config.model_dump(mode="json"), as_json=as_json, text=to_yaml(config).rstrip())
        return
    recipes = described_recipes()
    table = Table("recipe", "description", "differences from base")
    for recipe in recipes:
        changes = [f"{key}={_in_yaml(value)}" for key, value in recipe["changes"].items()]
        shown = changes if len(changes) <= 4 else [f"{len(changes)} settings"]
        table.add_row(recipe["name"], recipe["description"], escape("\n".join(shown)))
    print_result(recipes, as_json=as_json, text=as_text(table))


def _in_yaml(value: object) -> str:
    """A value in the syntax of `--set`."""
    import yaml

    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
