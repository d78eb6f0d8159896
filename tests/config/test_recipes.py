from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from muva.config import (
    ExperimentConfig,
    Stage2Config,
    differences,
    load_recipe,
    to_yaml,
    with_settings,
)
from muva.config.recipes import RECIPES
from muva.errors import SettingsError
from muva.model.clip import build_clip, new_clip, openai_weights
from muva.model.image_encoder import ImageEncoder


def test_defaults_are_the_papers() -> None:
    config = load_recipe("base")
    assert (config.stage1.epochs, config.stage2.epochs) == (120, 60)
    assert (config.stage1.lr, config.stage2.lr) == (3.5e-4, 5e-6)
    assert (config.model.image_height, config.model.image_width) == (256, 128)
    assert config.model.parts == ("head", "upper_body", "legs")
    assert config.augmentation.result_settings() == {}


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipes_load_and_survive_a_round_trip(recipe: str, tmp_path: Path) -> None:
    config = load_recipe(recipe)
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(config))
    assert load_recipe(copy) == config


ABLATIONS = sorted(path.stem for path in RECIPES.glob("ablation-*.yaml"))


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("recipe", ABLATIONS)
def test_an_ablation_differs_from_base_only_in_what_it_names(recipe: str) -> None:
    written = dict(leaves(yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())))
    assert written.pop("extends") == "base"
    assert written["name"] == recipe
    assert len(written) >= 3, "a name, a description, and something that differs"
    assert differences(load_recipe(recipe), load_recipe("base")) == written


def test_the_ablations_are_those_of_the_docs() -> None:
    assert len(ABLATIONS) == 13
    page = (RECIPES.parents[2] / "docs" / "data-sets.md").read_text()
    assert set(re.findall(r"^\| `(ablation-[a-z0-9-]+)` \|", page, flags=re.M)) == set(ABLATIONS)


@pytest.mark.parametrize("recipe", ABLATIONS)
def test_an_ablations_model_can_be_built(recipe: str) -> None:
    """At its own size and stride, of a CLIP that is narrow: what does not fit is refused then."""
    model = load_recipe(recipe).model
    clip = new_clip(
        token_ids=[0, 49406, 49407],
        seed=0,
        image_size=(model.image_height, model.image_width),
        patch=16,
        vision_width=64,
        vision_layers=1,
        text_layers=1,
    )
    size = (model.image_height, model.image_width)
    fitted = build_clip(
        openai_weights(clip), image_size=size, stride=model.stride, pretrained_grid=(16, 8)
    )
    encoder = ImageEncoder(fitted, model)
    feature = encoder(torch.zeros(1, 3, *size)).feature
    assert feature.shape == (1, (1 + len(model.parts)) * 64)


def test_an_override_changes_one_setting() -> None:
    config = load_recipe("base", overrides=["stage2.lr=1e-5", "model.parts=[legs, head]"])
    assert config.stage2.lr == 1e-5
    assert config.model.parts == ("head", "legs"), "the part axis ascends"
    assert config.stage2.epochs == Stage2Config().epochs


@pytest.mark.parametrize(
    ("override", "explanation"),
    [
        ("stage2.epoch=3", "stage2.epoch: there is no such setting; did you mean stage2.epochs?"),
        ("learning_rate=3", "learning_rate: there is no such setting; expected one of"),
        ("gating=online", "gating: there is no such setting; did you mean model.gating?"),
        ("stage2.lr=fast", "stage2.lr: should be a valid number"),
        ("stage2.lr=-1", "stage2.lr: should be greater than 0, found -1"),
        ("model.gating=soft", "model.gating: should be 'offline' or 'online', found 'soft'"),
        ("stage2.images_per_identity=5", "images_per_identity 5 does not divide batch_size 64"),
        ("grounding=null", "parts need pseudo-labels"),
        ("model.stride=17", "stride 17 leaves gaps between the patches of 16 pixels"),
        ("model.image_width=8", "holds no patch of 16 pixels"),
        ("model.parts=[head, head]", "names a part twice"),
        ("variants=[]", "variants: "),
        ("variants=[clip, clip]", "variants has duplicates: clip, clip"),
        ("sources=[a, b, a]", "sources has duplicates"),
        ("augmentation.gama=2", "did you mean augmentation.gamma?"),
        ("augmentation.jpeg=2", "augmentation.jpeg: should be less than or equal to 1, found 2"),
        ("augmentation.gamma=0.5", "augmentation.gamma: should be greater than or equal to 1"),
        ("augmentation.pad=-1", "augmentation.pad: should be greater than or equal to 0, found -1"),
        ("augmentation.pad=65", "augmentation.pad is 65, which could move most of an image of 256"),
        ("augmentation.pad=65", "expected at most 64 pixels, half of the shorter side"),
        ("augmentation.jpeg_quality=[90, 30]", "the least value before the most, as in [30, 90]"),
        ("augmentation.blur_sigma=[0, 1]", "augmentation.blur_sigma.0: should be greater than 0"),
        ("augmentation.erase_area=[0.1, 1]", "augmentation.erase_area.1: should be less than 1"),
        (
            "augmentation={jitter: 0.5, brightness: 0, contrast: 0, saturation: 0, hue: 0}",
            "would have no effect: raise one of them, or set jitter=0",
        ),
        ("stage2.lr", "expected section.key=value"),
        ("stage2.lr=[", "the value is not valid YAML"),
    ],
)
def test_an_impossible_setting_is_explained(override: str, explanation: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_recipe("base", overrides=[override])
    assert explanation in str(error.value)


def test_a_domain_is_not_source_and_target() -> None:
    with pytest.raises(SettingsError, match="market1501 is both a source and a target"):
        load_recipe("base", overrides=["sources=[market1501]", "targets=[market1501]"])


def test_global_only_needs_no_pseudo_labels() -> None:
    config = load_recipe("base", overrides=["grounding=null", "model.parts=[]"])
    assert config.grounding is None
    assert config.model.parts == ()


def test_unknown_recipe_names_the_closest() -> None:
    with pytest.raises(SettingsError, match="did you mean demo"):
        load_recipe("demmo")


@pytest.mark.parametrize("text", ["- a\n- b\n", "{", "\xff"])
def test_a_file_that_holds_no_settings_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match="expected"):
        load_recipe(path)


def test_changed_settings_are_checked_like_a_recipe() -> None:
    config = ExperimentConfig()
    assert with_settings(config, {"model.gating": "online"}, where="trial").model.gating == "online"
    with pytest.raises(SettingsError, match="trial"):
        with_settings(config, {"model.gaiting": "online"}, where="trial")


def test_the_effective_config_is_plain_yaml() -> None:
    settings = yaml.safe_load(to_yaml(ExperimentConfig()))
    assert settings["stage2"]["memory_momentum"] == 0.2
