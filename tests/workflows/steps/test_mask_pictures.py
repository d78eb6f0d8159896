"""Pictures of masks while a model learns: few, and without a change to the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muva.data.draw import Draw
from muva.data.training_images import TrainingImages
from tests.data.test_training_images import HALF, dataset
from tests.model.small import IMAGE_SIZE, small_model
from workflows.steps.mask_pictures import MOST_PICTURES, is_shown, masks_of


@pytest.mark.parametrize("epochs", [1, 2, 12, 60, 61])
def test_a_training_has_some_pictures_however_long_it_is(epochs: int) -> None:
    shown = [epoch for epoch in range(1, epochs + 1) if is_shown(epoch, epochs)]
    assert {1, epochs} <= set(shown)
    assert min(epochs, MOST_PICTURES // 2) <= len(shown) <= MOST_PICTURES + 2


def test_the_masks_are_those_of_the_model_as_it_is(tmp_path) -> None:
    height, width = IMAGE_SIZE
    grid = (6, 3)
    source = dataset(tmp_path, "town", [7, 3])
    expert = torch.rand(6, 3, 18, generator=torch.Generator().manual_seed(0)) > 0.5
    images = TrainingImages.open(
        [source],
        height=height,
        width=width,
        mean=HALF,
        std=HALF,
        part_masks=expert,
        grid=grid,
        cache_folder=tmp_path,
    )
    model = small_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    found = masks_of(3, model, images, torch.device("cpu"))

    assert model.training and found is not None
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), name
    chosen = [0, 1, 3, 5]
    np.testing.assert_array_equal(found.expert, expert[chosen].numpy())
    pixels, _ = images.batch(Draw(np.array(chosen)))
    with torch.no_grad():
        encoded = model.eval().encode_images(pixels)
    assert encoded.mask_probabilities is not None
    np.testing.assert_array_equal(found.predicted, (encoded.mask_probabilities[-1] > 0.5).numpy())
    assert masks_of(3, small_model(parts=()), images, torch.device("cpu")) is None
