"""The parts of a person: the paper's three by default, others by a recipe's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from muva.config import (
    PARTS,
    PHRASES,
    ExperimentConfig,
    GroundingConfig,
    ModelConfig,
    PromptConfig,
    load_recipe,
    to_yaml,
    with_settings,
)
from muva.data.artifacts import fingerprint
from muva.errors import SettingsError
from muva.model.prompts import prompt_texts

FOUR = ["model.parts=[shoes, legs, head, upper_body]", "grounding.phrases.shoes=the shoes"]


def test_the_papers_parts_come_first_in_their_order_and_then_a_recipes_own() -> None:
    parts = load_recipe("base", overrides=["model.parts=[bag, shoes, legs, head]"]).model.parts
    assert parts == ("head", "legs", "bag", "shoes")


def test_a_phrase_for_another_part_leaves_the_papers_phrases() -> None:
    config = load_recipe("base", overrides=FOUR)
    assert config.grounding is not None
    assert config.grounding.phrases == {**PHRASES, "shoes": "the shoes"}
    assert with_settings(config, {}, where="a copy") == config


def test_a_recipe_of_four_parts_survives_a_round_trip(tmp_path: Path) -> None:
    config = load_recipe("base", overrides=FOUR)
    (tmp_path / "copy.yaml").write_text(to_yaml(config))
    assert load_recipe(tmp_path / "copy.yaml") == config


def test_labels_of_fewer_parts_are_asked_for_by_a_model_of_fewer() -> None:
    changes = ["model.parts=[head, bag]", "grounding.phrases={bag: the bag}"]
    config = load_recipe("base", overrides=changes)
    assert config.grounding is not None
    assert config.grounding.phrases == {"head": PHRASES["head"], "bag": "the bag"}


@pytest.mark.parametrize("name", ["Shoes", "left shoe", "2nd_bag", "", "person"])
@pytest.mark.parametrize("setting", ["model.parts", "grounding.phrases"])
def test_a_name_that_no_part_may_have_is_explained(name: str, setting: str) -> None:
    value = {"model.parts": [name], "grounding.phrases": {name: "the shoes"}}[setting]
    with pytest.raises(SettingsError, match=rf"{setting}.*part '{name}': expected small letters"):
        with_settings(ExperimentConfig(), {setting: value}, where="test")


def test_a_prompt_names_a_part_in_words() -> None:
    assert prompt_texts(["head", "upper_body", "legs", "left_shoe"], PromptConfig()) == [
        "A photo of a * * * * person",
        "A photo of a * * * * head of a person",
        "A photo of a * * * * upper body of a person",
        "A photo of a * * * * legs of a person",
        "A photo of a * * * * left shoe of a person",
    ]


def test_the_papers_parts_have_the_addresses_that_they_always_had() -> None:
    assert PARTS == ("head", "upper_body", "legs")
    assert fingerprint(ModelConfig()) == "37b08cf1c98ebcf3"
    assert fingerprint(GroundingConfig()) == "b0364fb5c6c2b2bd"
