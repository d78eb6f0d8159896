"""A model of four parts through the library alone: both stages, its bundle, and features of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import muva
from muva.config import PARTS, PromptConfig, Stage1Config, Stage2Config
from muva.model.bundle import load_bundle, save_bundle
from muva.model.clip import build_clip, openai_weights, token_ids_in
from muva.model.muva_model import MuvaModel, build_model
from muva.model.prompts import prompt_texts
from muva.training.stage1 import image_centroids, learn_prompts
from muva.training.stage2 import train_image_encoder
from tests.model.small import IMAGE_SIZE, PATCH, small_clip, small_config
from tests.training.toy_images import ToyImages

FOUR = (*PARTS, "shoes")
CPU = torch.device("cpu")
BATCHES = {"batch_size": 8, "images_per_identity": 2, "precision": "fp32"}


def model_of(parts: tuple[str, ...]) -> MuvaModel:
    """A fresh model whose CLIP knows the words of all four parts."""
    height, width = IMAGE_SIZE
    clip = small_clip(token_ids=token_ids_in(prompt_texts(FOUR, PromptConfig())))
    return build_model(
        build_clip(
            openai_weights(clip),
            image_size=IMAGE_SIZE,
            stride=PATCH,
            pretrained_grid=(height // PATCH, width // PATCH),
        ),
        model=small_config(parts=parts),
        prompts=PromptConfig(),
        identities=6,
        seed=0,
    )


def test_four_parts_are_trained_saved_and_embedded(tmp_path: Path) -> None:
    model, images = model_of(FOUR), ToyImages(parts=4)
    stage1 = Stage1Config(**BATCHES, epochs=2, lr=0.05)
    centroids = image_centroids(model, images, stage1, device=CPU)
    reports = list(
        learn_prompts(
            model=model, centroids=centroids, labels=images.labels, settings=stage1, seed=1
        )
    )
    stage2 = Stage2Config(**BATCHES, epochs=2, lr=1e-4)
    tokens = model.image_encoder.part_tokens
    assert tokens is not None
    before = tokens.detach().clone()
    reports += train_image_encoder(model=model, images=images, settings=stage2, seed=5, device=CPU)
    assert all(np.isfinite(report.metrics["loss"]) for report in reports)
    learned = (tokens.detach() - before).abs().amax(dim=1)
    assert learned.shape == (4,) and (learned > 0).all(), "every part's token learns"

    save_bundle(model.eval(), tmp_path / "bundle", metadata={})
    people = np.random.default_rng(0).integers(0, 256, (3, *IMAGE_SIZE, 3), dtype=np.uint8)
    features = muva.load(str(tmp_path / "bundle")).embed(list(people))
    assert features.shape == (3, 5 * 32)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    opened = load_bundle(tmp_path / "bundle")
    assert opened.model.config.parts == FOUR
    assert opened.predicted_masks(list(people)).shape == (3, 4, 18)


def test_a_fourth_part_changes_no_prompt_of_the_others() -> None:
    three, four = model_of(PARTS), model_of(FOUR)
    assert torch.equal(four.text_encoder.token_ids[:4], three.text_encoder.token_ids)
    assert four.text_encoder.token_ids.shape[0] == 5
