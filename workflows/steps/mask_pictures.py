"""Pictures of the predicted masks during stage 2: the same few images, after some epochs.

A worker predicts the masks and sends them; the driver draws them beside the expert's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # The process that passes the masks on to the driver needs no PyTorch, and workers no MLflow.
    import torch

    from muva.data.training_images import TrainingImages
    from muva.model.muva_model import MuvaModel
    from tracking.runs import Run

SHOWN_IMAGES, MOST_PICTURES = 4, 12


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The masks of some training images, after an epoch."""

    epoch: int
    images: np.ndarray
    """(images, H, W, 3), uint8."""
    expert: np.ndarray
    """(images, R, L), bool, as is `predicted`: those of the last block."""
    predicted: np.ndarray
    grid: tuple[int, int]


def is_shown(epoch: int, epochs: int) -> bool:
    """Whether a picture is drawn after an epoch: the first, the last, and some in between."""
    every = -(-epochs // MOST_PICTURES)
    return epoch % every == 0 or epoch in (1, epochs)


def masks_of(
    epoch: int, model: MuvaModel, images: TrainingImages, device: torch.device
) -> Masks | None:
    """The masks that a model predicts, without changing it; None if it has no parts."""
    import torch

    from muva.data.draw import Draw

    if not model.config.parts:
        return None
    count = len(images)
    chosen = np.unique(np.linspace(0, count - 1, min(SHOWN_IMAGES, count)).astype(int))
    pixels, expert = images.uint8_batch(Draw(chosen))
    assert expert is not None
    was_training = model.training
    model.eval()
    with torch.no_grad():
        encoded = model.encode_images(images.normalise(pixels.to(device)))
    model.train(was_training)
    assert encoded.mask_probabilities is not None
    return Masks(
        epoch=epoch,
        images=pixels.numpy(),
        expert=expert.numpy(),
        predicted=(encoded.mask_probabilities[-1] > 0.5).cpu().numpy(),
        grid=model.grid,
    )


def draw_masks(run: Run, masks: Masks, parts: Sequence[str]) -> None:
    """The picture of an epoch, `masks/epoch-003.png`."""
    from tracking.pictures import part_mask_sheet

    sheet = part_mask_sheet(
        list(masks.images),
        {"expert": masks.expert, "predicted": masks.predicted},
        grid=masks.grid,
        parts=parts,
        title=f"Part masks after epoch {masks.epoch}",
        subtitle="Training images; the last block's prediction beside the expert's boxes",
        people_per_row=2,
    )
    run.log_image_buffered(f"masks/epoch-{masks.epoch:03d}.png", sheet)
