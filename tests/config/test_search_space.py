from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muva.config import ExperimentConfig, load_recipe, with_settings
from muva.config.augmentation import STRENGTHS
from muva.config.search_space import Choice, Range, shipped_spaces, space_for
from muva.errors import SettingsError


@pytest.fixture(scope="module")
def demo() -> ExperimentConfig:
    return load_recipe("demo")


@pytest.mark.parametrize("recipe", ["demo", "base", "msmt17"])
@pytest.mark.parametrize("name", shipped_spaces())
def test_a_shipped_space_fits_the_shipped_recipes(name: str, recipe: str) -> None:
    config = load_recipe(recipe, overrides=["grounding.expert=florence-2"])
    space = space_for(name, config)
    assert space.settings
    assert not [one for one in space.left_out if not one.startswith("grounding.expert")]


def test_the_space_of_masks_searches_the_masks(demo: ExperimentConfig) -> None:
    space = space_for("masks", demo)
    settings = {one.name: one for one in space.settings}
    assert {"model.gating", "model.mask_temperature", "stage2.mask_loss"} <= settings.keys()
    assert settings["model.mask_max_value"].when == {"model.gating": ("online",)}
    assert settings["model.stride"].values == Choice(values=(8, 6)), "in patches of the tiny CLIP"
    assert [one.name for one in space.settings][: len(space.held)] == list(space.held)
    everything = {one.name for one in space_for("all", demo).settings}
    assert settings.keys() < everything
    assert {"prompts.template", "stage2.lr", "stage2.memory_momentum"} < everything


def test_the_space_of_augmentation_belongs_to_all_and_may_switch_everything_off(
    demo: ExperimentConfig,
) -> None:
    space = space_for("augmentation", demo)
    values = {one.name: one.values for one in space.settings}
    assert {f"augmentation.{switch}" for switch in STRENGTHS} <= values.keys()
    assert values["augmentation.pad"] == Choice(values=(0, 5)), "in patches of the tiny CLIP"
    assert values.keys() < {one.name for one in space_for("all", demo).settings}
    off = {name: choice.values[0] for name, choice in values.items() if isinstance(choice, Choice)}
    switched_off = with_settings(demo, {name: off[name] for name in values}, where="test")
    assert switched_off.augmentation.result_settings() == {}


def test_a_strength_is_searched_only_where_its_augmentation_is_on(demo: ExperimentConfig) -> None:
    jpeg = {"range": [0.0, 0.5]}
    assert space_for({"augmentation.jpeg": jpeg, "augmentation.jpeg_quality": [[5, 9]]}, demo)
    with pytest.raises(SettingsError, match=r"used only if augmentation\.jpeg is above 0, found 0"):
        space_for({"augmentation.jpeg_quality": [[5, 9], [30, 90]]}, demo)
    with pytest.raises(SettingsError, match=r"Add the condition when: {augmentation\.jpeg: 0\.2}"):
        space_for({"augmentation.jpeg": [0, 0.2], "augmentation.jpeg_quality": [[5, 9]]}, demo)


def test_a_setting_is_searched_only_if_its_condition_holds(demo: ExperimentConfig) -> None:
    space = space_for(
        {
            "model.mask_max_value": {"choice": [1, 10], "when": {"model.gating": "online"}},
            "model.gating": ["offline", "online"],
        },
        demo,
    )
    assert list(space.points()) == [
        {"model.gating": "offline"},
        {"model.gating": "online", "model.mask_max_value": 1},
        {"model.gating": "online", "model.mask_max_value": 10},
    ]


def test_a_space_may_extend_another(demo: ExperimentConfig, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "extends: masks\nheld: null\nsettings:\n  model.stride: null\n"
        "  stage2.epochs: {range: [2, 9], integer: true}\n"
    )
    settings = {one.name: one.values for one in space_for(mine, demo).settings}
    assert "model.stride" not in settings
    assert "model.gating" in settings
    assert settings["stage2.epochs"] == Range(low=2, high=9, integer=True)


@pytest.mark.parametrize(
    ("settings", "explanation"),
    [
        ({}, "expected at least one setting to search, found none"),
        ({"model.gatin": ["online"]}, "did you mean model.gating"),
        ({"model.gating": ["soft"]}, "should be 'offline' or 'online', found 'soft'"),
        ({"model.gating": []}, "model.gating names no value"),
        ({"model.gating": ["online", "online"]}, "names a value twice"),
        (
            {"model.gating": "online"},
            "expected a list of values .A, B. or an entry such as .range: .LOW, HIGH..",
        ),
        ({"model.gating": {"choise": ["online"]}}, "choise: there is no such key.*choice"),
        (
            {"model.gating": {"choice": ["online"], "log": True}},
            "log and integer apply only to a range",
        ),
        ({"stage2.lr": {"range": [0, 1], "log": True}}, "two ascending numbers above 0"),
        ({"stage2.lr": {"range": [1, 1e-3]}}, "two ascending numbers"),
        ({"stage2.lr": {"range": [-1, 1]}}, "stage2.lr: should be greater than 0, found -1"),
        ({"stage2.epochs": {"range": [1.5, 3], "integer": True}}, "expected whole numbers"),
        ({"targets": [["a"]]}, "targets does not affect the objective"),
        ({"evaluation.rerank": [True, False]}, "evaluation.rerank does not affect"),
        ({"seed": [1, 2]}, "seed only adds noise; use --seeds"),
        ({"model.clip": ["tiny", "ViT-Z"]}, "nor a name that open_clip knows"),
        (
            {"model.mask_max_value": [1, 9]},
            "is used only if model.gating is online, found 'offline'",
        ),
        (
            {"model.gating": ["offline", "online"], "model.mask_max_value": [1, 9]},
            'Add the condition when: {model.gating: "online"}',
        ),
        (
            {
                "model.gating": ["offline"],
                "model.mask_max_value": {"choice": [1], "when": {"model.gating": "online"}},
            },
            "never be searched: its condition expects model.gating to be 'online'",
        ),
        (
            {"model.stride": {"choice": [1], "when": {"model.clip": "ViT-B-16"}}},
            "model.clip is 'tiny', but its condition expects 'ViT-B-16'",
        ),
        (
            {"model.stride": {"choice": [8], "when": {"model.gatin": "online"}}},
            "did you mean model.gating",
        ),
        (
            {
                "model.gating": {"choice": ["online"], "when": {"stage2.mask_loss": "mse"}},
                "stage2.mask_loss": {"choice": ["mse"], "when": {"model.gating": "online"}},
            },
            "depend on each other: remove one of them",
        ),
    ],
)
def test_an_invalid_space_is_rejected(
    settings: dict[str, Any], explanation: str, demo: ExperimentConfig
) -> None:
    with pytest.raises(SettingsError, match=explanation):
        space_for(settings, demo)


def test_mask_settings_without_parts_are_refused(demo: ExperimentConfig) -> None:
    without = with_settings(demo, {"model.parts": [], "tune": None}, where="test")
    with pytest.raises(SettingsError, match=r"used only if model\.parts names a part, found \[\]"):
        space_for({"model.gating": ["online", "offline"]}, without)


@pytest.mark.parametrize(
    ("content", "explanation"),
    [
        ("setings: {}", "did you mean settings"),
        ("[1]", "expected `settings"),
        ("settings: {model.gating: [", "expected a YAML file"),
        ("extends: [mine.yaml]", "do not extend this one"),
        ("extends: mask", "did you mean masks"),
        (
            "settings: {model.gating: [online]}\nheld: {every: 2, settings: [model.gatin]}",
            "held.settings names model.gatin.*did you mean model.gating",
        ),
        (
            "settings: {model.gating: [online]}\nslow: {every: 2, settings: [model.gating]}",
            "expected the key held, found slow",
        ),
    ],
)
def test_an_invalid_file_is_rejected(
    content: str, explanation: str, demo: ExperimentConfig, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(content)
    with pytest.raises(SettingsError, match=explanation):
        space_for(mine, demo)


@pytest.mark.parametrize(
    ("name", "explanation"),
    [("mask", "did you mean masks"), ("demo", "muva tune --recipe"), ("x.yaml", "found none at")],
)
def test_an_unknown_space_is_refused(name: str, explanation: str, demo: ExperimentConfig) -> None:
    with pytest.raises(SettingsError, match=explanation):
        space_for(name, demo)
