"""The model that comes with muva: its size, its card, what it was trained on, and what it knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import muva
from benchmarks.baseline import BASELINES
from muva.config import load_recipe
from muva.hub.card import CARD, is_unedited
from muva.model.bundle import Bundle, load_bundle, save_bundle
from muva.model.bundle_description import (
    CALIBRATION,
    DESCRIPTION,
    SHIPPED_MODELS,
    WEIGHTS,
    trained_people,
)
from muva.model.clip import load_clip
from muva.pretraining.clip import NETWORKS, class_tokens, unseen
from muva.retrieval.calibration import Calibration
from muva.synthetic import DOMAINS
from muva.synthetic.world import network_name, networks_of
from tests.model.small import small_model

ROOT = Path(__file__).parents[2]
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


def test_it_is_calibrated_on_people_whom_neither_it_nor_its_clip_has_seen(bundle: Bundle) -> None:
    calibration = Calibration.from_json(bundle.metadata[CALIBRATION])
    networks = [network for name in calibration.datasets for network in networks_of(name)]
    assert len(networks) == len(calibration.datasets)  # no pairs of two networks
    trained = [network for name in bundle.metadata["source_names"] for network in networks_of(name)]
    assert not {*networks} & {*DOMAINS, *trained, *map(network_name, range(NETWORKS))}
    assert set(calibration.thresholds) >= {1e-2, 1e-3}
    assert "## Same person?" in (FOLDER / CARD).read_text()


def test_its_card_has_the_licence_the_results_and_the_limits() -> None:
    card = (FOLDER / CARD).read_text()
    assert is_unedited(card)
    assert "Of these weights: apache-2.0." in card
    assert "--model synthetic " in card
    assert "no image of a real person was used" in card
    assert "## What it must not be used for" in card
    recorded = json.loads((BASELINES / "zero_shot.json").read_text())["tables"]["synthetic"]
    measured = {row["domain"]: row["mean_ap"] for row in recorded["rows"]}
    assert measured.keys() == set(DOMAINS)
    stated = {
        m[1]: float(m[2]) for m in re.finditer(r"^\| (syn-\w+) \| [\d.]+ \| ([\d.]+) ", card, re.M)
    }
    # Images are embedded in other batches there, and bfloat16 rounds differently.
    assert stated == pytest.approx({name: 100 * value for name, value in measured.items()}, abs=0.5)


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
    save_bundle(small_model(), tmp_path / "synthetic", metadata={})
    np.testing.assert_array_equal(muva.load("synthetic").embed([image]), bundle.embed([image]))
    for own in (Path("synthetic"), "./synthetic"):
        assert muva.load(own).metadata == {}
    load_bundle(tmp_path / "synthetic").save(tmp_path / "copy" / "synthetic")
    card = (tmp_path / "copy" / "synthetic" / CARD).read_text()
    assert 'muva.load("./synthetic")' in card and "--model ./synthetic " in card


def test_make_model_evaluates_it_on_all_named_domains() -> None:
    named = re.search(r"^NAMED := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert named is not None
    assert {*named[1].split(",")} == set(DOMAINS)
