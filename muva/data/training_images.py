"""Training images of the pooled sources as batches for both stages, with their part masks.

Decoded and resized once, images stay in memory as bytes up to a limit; the rest is decoded each
time. A flip mirrors an image and its masks together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from muva.data.images import decode_rgb, normalised_pixels, resized
from muva.data.protocols import Pool, pool
from muva.data.shards import Dataset
from muva.errors import MuvaError

CACHE_BYTES = 4 * 2**30


class TrainingImages:
    """M training images with dense labels and, where there are parts, masks (M, R, L).

    `part_masks` are in the order of `pool(datasets)`, row-major over `grid` (rows, columns).
    """

    def __init__(
        self,
        pooled: Pool,
        *,
        height: int,
        width: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        part_masks: Tensor | None,
        grid: tuple[int, int],
        cache_bytes: int = CACHE_BYTES,
    ):
        if part_masks is not None and (
            part_masks.shape[0] != len(pooled.labels) or part_masks.shape[2] != grid[0] * grid[1]
        ):
            raise MuvaError(
                f"part masks: expected {len(pooled.labels)} images and {grid[0]} x {grid[1]} "
                f"patches, found shape {tuple(part_masks.shape)}"
            )
        self.labels = pooled.labels
        self.image_ids = list(pooled.image_ids)
        self.part_masks = part_masks
        self._pool = pooled
        self._size = (height, width)
        self._mean, self._std = mean, std
        self._grid = grid
        kept = min(len(self), cache_bytes // (height * width * 3))
        self._cache = np.empty((kept, height, width, 3), np.uint8)
        self._cached = np.zeros(kept, bool)

    @classmethod
    def open(
        cls,
        datasets: Sequence[Dataset],
        *,
        height: int,
        width: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        part_masks: Tensor | None,
        grid: tuple[int, int],
        cache_bytes: int = CACHE_BYTES,
    ) -> TrainingImages:
        """The train splits of the data sets, pooled."""
        return cls(
            pool(datasets),
            height=height,
            width=width,
            mean=mean,
            std=std,
            part_masks=part_masks,
            grid=grid,
            cache_bytes=cache_bytes,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, flips: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Normalised images (B, 3, H, W) and part masks (B, R, L), mirrored where told."""
        indices = np.asarray(indices)
        pixels = normalised_pixels(self._pixels(indices), mean=self._mean, std=self._std)
        masks = None if self.part_masks is None else self.part_masks[torch.from_numpy(indices)]
        if flips is not None and flips.any():
            pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
            if masks is not None:
                mirrored = flip_part_masks(masks, grid=self._grid)
                masks = torch.where(flips[:, None, None], mirrored, masks)
        return pixels, masks

    def _pixels(self, indices: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8."""
        cacheable = indices < len(self._cache)
        self._decode(np.unique([i for i in indices[cacheable] if not self._cached[i]]).astype(int))
        pixels = np.empty((len(indices), *self._size, 3), np.uint8)
        pixels[cacheable] = self._cache[indices[cacheable]]
        beyond = np.flatnonzero(~cacheable)
        for place, image in zip(beyond, self._read(indices[beyond]), strict=True):
            pixels[place] = image
        return pixels

    def _decode(self, indices: np.ndarray) -> None:
        """Fill the cache at these indices."""
        for index, image in zip(indices, self._read(indices), strict=True):
            self._cache[index] = image
            self._cached[index] = True

    def _read(self, indices: np.ndarray) -> list[np.ndarray]:
        images: dict[int, np.ndarray] = {}
        height, width = self._size
        for number, dataset in enumerate(self._pool.datasets):
            here = indices[self._pool.dataset_index[indices] == number]
            encoded = dataset.read_images(self._pool.rows[here])
            for index, data in zip(here, encoded, strict=True):
                images[int(index)] = resized(
                    decode_rgb(data), height=height, width=width, interpolation="bicubic"
                )
        return [images[int(index)] for index in indices]


def flip_part_masks(masks: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Masks (..., L) of the mirrored image: the columns of the patch grid in reverse."""
    return masks.unflatten(-1, grid).flip(-1).flatten(-2)
