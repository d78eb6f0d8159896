"""What a training process opens: augmentation is for stage 2, and moves masks as their boxes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from muva.config import PARTS, AugmentationConfig, load_recipe
from muva.data.draw import Draw
from muva.data.shards import open_dataset
from muva.data.store import open_store
from muva.data.training_images import TrainingImages
from muva.errors import MuvaError
from muva.grounding.labels import open_labels
from muva.grounding.part_masks import part_masks, patch_centres
from muva.grounding.release import base_name
from tests.data.test_training_images import dataset
from workflows.session import Session
from workflows.steps.import_labels import import_release
from workflows.steps.training_inputs import TrainingInputs

GRID = (8, 4)
"""Of the smoke recipe's images of 64 x 32 in patches of 8."""
BOXES = ((0.25, 0.0, 0.75, 0.25), (0.0, 0.25, 1.0, 0.625), (0.25, 0.5, 1.0, 0.875))
AUGMENTED = "augmentation={pad: 8, jpeg: 0.5}"
Annotation = Sequence[Sequence[float]] | np.ndarray


def inputs_of(
    folder: Path, recipe: Path, annotations: Sequence[Annotation], *overrides: str
) -> TrainingInputs:
    """Two sources whose images all have the annotations of their source: boxes or masks."""
    session = Session(home=folder, store=open_store(folder), tracking_uri=None)
    sources = [dataset(folder, name, [1, 2, 3]).artifact for name in ("town", "city")]
    labels = []
    for source, annotation in zip(sources, annotations, strict=True):
        file = folder / f"{source.name}.pkl"
        image_ids = open_dataset(source).rows(["image_id"])["image_id"].to_pylist()
        file.write_bytes(pickle.dumps({base_name(one): annotation for one in image_ids}))
        done = import_release(session, source, file, parts=PARTS, grid=GRID, missing=False)
        labels.append(done.artifact)
    config = load_recipe(
        recipe, overrides=["sources=[town, city]", "grounding={expert: imported}", *overrides]
    )
    return TrainingInputs.of(config, sources=sources, labels=labels)


def opened(inputs: TrainingInputs, *, predicts_masks: bool = True) -> TrainingImages:
    return inputs.open(predicts_masks=predicts_masks)[1]


def centres() -> dict[str, Any]:
    return {
        "row_centres": patch_centres(64, patch=8, stride=8),
        "column_centres": patch_centres(32, patch=8, stride=8),
    }


def masks_of_boxes() -> np.ndarray:
    """(3, 32), with 0 within the part and minus infinity elsewhere, as in the release."""
    boxes = torch.tensor([BOXES])
    masks = part_masks(boxes, torch.ones(1, 3, dtype=torch.bool), **centres())[0]
    return np.where(masks.numpy(), 0, -np.inf)


def test_stage_2_moves_images_and_masks_and_stage_1_augments_nothing(
    smoke_recipe: Path, tmp_path: Path
) -> None:
    inputs = inputs_of(tmp_path, smoke_recipe, [BOXES, BOXES], AUGMENTED)
    images = opened(inputs)
    assert images.augmentation == AugmentationConfig(pad=8, jpeg=0.5)
    draw = Draw(np.array([0, 17]), None, np.array([1, 2]))
    (plain, masks), (moved, moved_masks) = images.batch(Draw(draw.indices)), images.batch(draw)
    assert masks is not None and moved_masks is not None
    assert not torch.equal(plain, moved) and not torch.equal(masks, moved_masks)
    stage1 = opened(inputs, predicts_masks=False)
    assert stage1.augmentation == AugmentationConfig()
    again, same_masks = stage1.batch(draw)
    assert same_masks is not None
    assert torch.equal(again, plain) and torch.equal(same_masks, masks)


def test_imported_masks_that_are_rectangles_move_like_boxes_and_others_are_refused(
    smoke_recipe: Path, tmp_path: Path
) -> None:
    draw = Draw(np.arange(18), None, np.arange(18))
    masks = masks_of_boxes()
    boxed, masked = (
        opened(inputs_of(tmp_path / name, smoke_recipe, [one, one], AUGMENTED)).batch(draw)
        for name, one in (("boxes", BOXES), ("masks", masks))
    )
    assert boxed[1] is not None and masked[1] is not None
    assert torch.equal(boxed[0], masked[0]) and torch.equal(boxed[1], masked[1])
    masks[1, 5] = -np.inf
    masks[1, 9] = -np.inf
    odd = [masks_of_boxes(), masks]
    inputs = inputs_of(tmp_path / "odd", smoke_recipe, odd, AUGMENTED)
    with pytest.raises(MuvaError, match=r"of 9 of 9 images are not rectangles.* augmentation\.pad"):
        opened(inputs)
    colours = inputs_of(tmp_path / "colours", smoke_recipe, odd, "augmentation={jpeg: 0.5}")
    assert opened(colours).part_masks is not None


def test_the_boxes_of_labels_make_their_masks(smoke_recipe: Path, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, smoke_recipe, [BOXES, masks_of_boxes()])
    found = []
    for source, labelled in zip(*inputs.step_inputs().values(), strict=True):
        labels = open_labels(labelled, dataset=open_dataset(source))
        boxes, was_found = labels.boxes_of_masks(labels.image_ids, **centres())
        masks = labels.masks(labels.image_ids, **centres())
        assert torch.equal(part_masks(boxes, was_found, **centres()), masks)
        found.append(boxes)
    torch.testing.assert_close(found[0], found[1])
