"""The model that comes with muva: its size, its card, what it was trained on, and what it knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import muva
from muva.config import load_recipe
from muva.hub.card import CARD, is_unedited
from muva.model.bundle import Bundle
from muva.model.bundle_description import DESCRIPTION, SHIPPED_MODELS, WEIGHTS, trained_people
from muva.model.clip import load_clip
from muva.pretraining.clip import NETWORKS, class_tokens, unseen
from muva.synthetic import DOMAINS
from muva.synthetic.world import network_name, networks_of

FOLDER = SHIPPED_MODELS["synthetic"]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return muva.load("synthetic")


def test_its_folder_is_small_and_complete() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {WEIGHTS, DESCRIPTION, CARD}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 20e6


def test_it_was_trained_on_the_open_world_alone_as_the_recipe_says(bundle: Bundle) -> None:
    recipe = load_recipe("open-world")
    assert tuple(bundle.metadata["source_names"]) == recipe.sources
    networks = [network for source in recipe.sources for network in networks_of(source)]
    assert networks
    assert not {*networks} & {*DOMAINS, *map(network_name, range(NETWORKS))}
    assert bundle.model.config == recipe.model
    description = json.loads((FOLDER / DESCRIPTION).read_text())
    assert trained_people(description) == recipe.synthetic.train_people


def test_its_card_has_the_licence_the_results_and_the_limits() -> None:
    card = (FOLDER / CARD).read_text()
    assert is_unedited(card)
    assert "Of these weights: apache-2.0." in card
    assert "--model synthetic " in card
    assert "no image of a real person was used" in card
    assert "## What it must not be used for" in card
    for domain in DOMAINS:
        assert f"| {domain} | " in card


@pytest.mark.parametrize("domain", ["syn-plaza", "syn-station"])
def test_it_knows_people_better_than_the_clip_that_it_started_from(
    bundle: Bundle, domain: str
) -> None:
    clip = load_clip("small", image_size=(128, 64), stride=8)
    before = unseen(class_tokens(clip), domain, people=30)
    after = unseen(lambda images: torch.from_numpy(bundle.embed(list(images))), domain, people=30)
    assert after.mean_ap > before.mean_ap


def test_it_opens_from_anywhere_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    monkeypatch.chdir(tmp_path)
    image = np.full((90, 40, 3), 128, np.uint8)
    np.testing.assert_array_equal(muva.load("synthetic").embed([image]), bundle.embed([image]))
