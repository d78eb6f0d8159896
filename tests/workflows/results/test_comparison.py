"""Which ablation a model's settings are: what `muva compare` keeps apart."""

from __future__ import annotations

import pytest

from muva.config import load_recipe, shipped_recipes
from workflows.results.comparison import ABLATION, ablation_of

TRAINED = [
    name for name in shipped_recipes() if name.startswith(ABLATION) and name != "ablation-rerank"
]


def settings(recipe: str, *overrides: str) -> dict[str, dict[str, object]]:
    """The sections as a model's and its prompts' manifests hold them."""
    config = load_recipe(recipe, overrides=overrides).model_dump(mode="json")
    return {name: config[name] for name in ("model", "prompts", "stage1", "stage2")}


@pytest.mark.parametrize("recipe", TRAINED)
def test_an_ablation_is_known_by_its_settings_whatever_else_is_set(recipe: str) -> None:
    name = recipe.removeprefix(ABLATION)
    assert ablation_of(settings(recipe)) == name
    elsewhere = ("model.clip=/models/ViT-B-16.pt", "model.predictor_heads=8", "stage2.epochs=3")
    assert ablation_of(settings(recipe, *elsewhere)) == name


def test_the_method_itself_and_mixtures_are_no_ablation() -> None:
    for recipe in ("base", "msmt17", "ablation-rerank", "demo"):
        assert ablation_of(settings(recipe)) == ""
    assert ablation_of(settings("ablation-gating-online", "stage2.mask_loss=mse")) == ""
    assert ablation_of(settings("base", "model.part_token_init=patch_avg")) == ""
