"""`muva recipes`: what is shipped, in words and as data."""

from __future__ import annotations

import json

import pytest

from muva.config import ExperimentConfig, load_recipe, shipped_recipes
from workflows.cli import main


def recipes_output(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["recipes", *words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_all_recipes_are_listed_with_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = {one["name"]: one for one in json.loads(recipes_output(capsys, "--json"))}
    assert list(recipes) == shipped_recipes() and next(iter(recipes)) == "base"
    assert all(one["description"] for one in recipes.values())
    assert recipes["base"]["changes"] == {}
    assert recipes["msmt17"]["changes"] == {"model.predictor_heads": 8}
    assert recipes["ablation-parts-0"]["changes"] == {"model.parts": [], "grounding": None}


def test_the_list_shows_changes_as_they_are_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(recipes_output(capsys).split())
    assert "ablation-gating-online" in words
    for change in ("model.gating=online", "model.parts=[upper_body]", "grounding=null"):
        assert change in words


def test_one_recipe_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(recipes_output(capsys, "ablation-stride-12", "--json"))
    assert ExperimentConfig.model_validate(shown) == load_recipe("ablation-stride-12")
    assert "stride: 12" in recipes_output(capsys, "ablation-stride-12")


def test_an_unknown_recipe_names_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["recipes", "ablation-stride"])
    assert stop.value.code == 2
    assert "did you mean ablation-stride-12?" in " ".join(capsys.readouterr().err.split())
