"""Training images for tests: noise around a pattern per identity, in memory.

The seed of a draw changes an image a little, so that wrong seeds change the losses.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from muva.config import AugmentationConfig
from muva.data.draw import Draw
from tests.model.small import IMAGE_SIZE, PATCH


class ToyImages:
    def __init__(
        self,
        *,
        identities: int = 6,
        images_each: int = 4,
        parts: int = 3,
        dtype: torch.dtype = torch.float32,
    ):
        self.augmentation = AugmentationConfig()
        generator = torch.Generator().manual_seed(7)
        self.labels = np.repeat(np.arange(identities), images_each)
        self.image_ids = [f"toy/{row:04d}" for row in range(len(self.labels))]
        patterns = torch.randn(identities, 3, *IMAGE_SIZE, generator=generator)
        noise = torch.randn(len(self.labels), 3, *IMAGE_SIZE, generator=generator)
        self.images = (patterns[self.labels] + 0.5 * noise).to(dtype)
        self.rows, self.columns = (side // PATCH for side in IMAGE_SIZE)
        shape = (len(self.labels), parts, self.rows * self.columns)
        self.part_masks = torch.rand(shape, generator=generator) < 0.4 if parts else None

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        images = self.images[draw.indices].clone()
        masks = None if self.part_masks is None else self.part_masks[draw.indices].clone()
        if draw.seeds is not None:
            for image, seed in zip(images, draw.seeds.tolist(), strict=True):
                image += 0.2 * torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(seed))
        if draw.flips is not None:
            flips = torch.from_numpy(draw.flips)
            images[flips] = images[flips].flip(-1)
            if masks is not None:
                grid = masks[flips].unflatten(-1, (self.rows, self.columns))
                masks[flips] = grid.flip(-1).flatten(-2)
        return images, masks
