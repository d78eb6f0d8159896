"""Batches of training images, pooled over the sources, with their part masks.

Decoded and resized images are cached as bytes for all processes of a node, up to a limit; the
others are decoded every time. What moves an image, a flip or a crop, moves its masks with it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from muva.config import AugmentationConfig
from muva.data.decoded import NODE_BYTES, decoded_images
from muva.data.draw import Draw
from muva.data.images import decode_rgb, resized
from muva.data.normalised import normalised_levels, normalised_pixels
from muva.data.protocols import Pool, pool
from muva.data.shards import Dataset
from muva.errors import MuvaError

NO_AUGMENTATION = AugmentationConfig()
MovedMasks = Callable[[Tensor, Tensor], Tensor]
"""Masks (B, R, L) of images, given their indices (B,) and by what fractions of the image they have
moved to the right and down (B, 2); see `muva.grounding.part_masks.BoxMasks`."""


class TrainingImages:
    """M training images with labels 0..N-1 and, for models with parts, part masks (M, R, L).

    `part_masks` follow the order of the pool and are row-major over `grid` (rows, columns).
    `augmentation` is applied to images whose draw has seeds; if it moves them, models with parts
    need `moved_masks`, which must be picklable for loader processes. `cache_bytes` and
    `cache_folder` configure the cache of decoded images, see `decoded_images`. Raises MuvaError if
    the shape of the masks does not fit, or if `moved_masks` are missing.
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
        augmentation: AugmentationConfig = NO_AUGMENTATION,
        moved_masks: MovedMasks | None = None,
        cache_bytes: int = NODE_BYTES,
        cache_folder: Path | None = None,
    ):
        if part_masks is not None and (
            part_masks.shape[0] != len(pooled.labels) or part_masks.shape[2] != grid[0] * grid[1]
        ):
            raise MuvaError(
                f"part masks: expected {len(pooled.labels)} images and {grid[0]} x {grid[1]} "
                f"patches, found shape {tuple(part_masks.shape)}"
            )
        if part_masks is not None and augmentation.pad and moved_masks is None:
            raise MuvaError(
                f"augmentation.pad is {augmentation.pad}, but there are no boxes from which the "
                "part masks of moved images follow: expected moved_masks, or pad=0"
            )
        self.augmentation = augmentation
        self._augments = bool(augmentation.result_settings())
        self.labels = pooled.labels
        self.image_ids = list(pooled.image_ids)
        self.part_masks = part_masks
        self._moved_masks = moved_masks
        self._pool = pooled
        self._size = (height, width)
        self._mean, self._std = mean, std
        self._grid = grid
        image_index = np.stack([pooled.dataset_index, pooled.rows])
        self._decoded = decoded_images(
            [
                [dataset.fingerprint for dataset in pooled.datasets],
                hashlib.sha256(image_index.tobytes()).hexdigest(),
                ("bicubic", PIL.__version__),
            ],
            count=len(self),
            height=height,
            width=width,
            limit_bytes=cache_bytes,
            folder=cache_folder,
        )

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
        augmentation: AugmentationConfig = NO_AUGMENTATION,
        moved_masks: MovedMasks | None = None,
        cache_bytes: int = NODE_BYTES,
        cache_folder: Path | None = None,
    ) -> TrainingImages:
        """The train splits of these data sets, pooled."""
        return cls(
            pool(datasets),
            height=height,
            width=width,
            mean=mean,
            std=std,
            part_masks=part_masks,
            grid=grid,
            augmentation=augmentation,
            moved_masks=moved_masks,
            cache_bytes=cache_bytes,
            cache_folder=cache_folder,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """State for loader processes, which do not need image ids and identities."""
        nameless = dataclasses.replace(self._pool, image_ids=(), identities=())
        return {**vars(self), "image_ids": [], "_pool": nameless}

    def batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """Normalised images (B, 3, H, W) and part masks (B, R, L), altered as the draw says."""
        pixels, masks = self._batch(draw)
        return normalised_pixels(pixels, mean=self._mean, std=self._std), masks

    def uint8_batch(self, draw: Draw) -> tuple[Tensor, Tensor | None]:
        """The same with pixels (B, H, W, 3) as uint8, a quarter of the size; see `normalise`."""
        pixels, masks = self._batch(draw)
        return torch.from_numpy(pixels), masks

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) from the pixels of `uint8_batch`, on their device."""
        if pixels.device.type == "cpu":
            return normalised_pixels(pixels.numpy(), mean=self._mean, std=self._std)
        return normalised_levels(pixels.permute(0, 3, 1, 2), mean=self._mean, std=self._std)

    def _batch(self, draw: Draw) -> tuple[np.ndarray, Tensor | None]:
        """Pixels (B, H, W, 3) uint8, and part masks."""
        indices = np.asarray(draw.indices)
        pixels, shift = self._augmented(self._pixels(indices), draw.seeds)
        masks = self._masks(indices, shift)
        flips = draw.flips
        if flips is not None and flips.any():
            pixels[flips] = pixels[flips, :, ::-1]
            if masks is not None:
                mirrored = flip_part_masks(masks, grid=self._grid)
                masks = torch.where(torch.from_numpy(flips)[:, None, None], mirrored, masks)
        return pixels, masks

    def _augmented(
        self, pixels: np.ndarray, seeds: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels, and by how many of them each image has moved, None if none has."""
        if seeds is None or not self._augments:
            return pixels, None
        # OpenCV takes 0.1 s to import, in every loader process.
        from muva.data.augmentation import augmented

        pixels, shift = augmented(pixels, seeds, self.augmentation)
        return pixels, shift if shift.any() else None

    def _masks(self, indices: np.ndarray, shift: np.ndarray | None) -> Tensor | None:
        """Part masks (B, R, L) of images that have moved by (dx, dy) pixels (B, 2)."""
        if self.part_masks is None:
            return None
        chosen = torch.from_numpy(indices)
        if shift is None:
            return self.part_masks[chosen]
        assert self._moved_masks is not None
        height, width = self._size
        return self._moved_masks(chosen, torch.from_numpy(shift / (width, height)))

    def _pixels(self, indices: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) uint8."""
        pixels = np.empty((len(indices), *self._size, 3), np.uint8)
        missing: dict[int, list[int]] = {}
        for position, index in enumerate(indices.tolist()):
            image = self._decoded.read(index) if index < len(self._decoded) else None
            if image is None:
                missing.setdefault(index, []).append(position)
            else:
                pixels[position] = image
        self._decode_missing(missing, pixels)
        return pixels

    def _decode_missing(self, missing: dict[int, list[int]], pixels: np.ndarray) -> None:
        """Decode uncached images; `missing` maps an index to its positions in the batch."""
        height, width = self._size
        indices = np.array(list(missing), np.int64)
        for number, dataset in enumerate(self._pool.datasets):
            of_dataset = indices[self._pool.dataset_index[indices] == number]
            encoded = dataset.read_images(self._pool.rows[of_dataset])
            for index, data in zip(of_dataset.tolist(), encoded, strict=True):
                image = resized(
                    decode_rgb(data), height=height, width=width, interpolation="bicubic"
                )
                for position in missing[index]:
                    pixels[position] = image
                if index < len(self._decoded):
                    self._decoded.write(index, image)


def flip_part_masks(masks: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """The masks (..., L) of the mirrored image: the columns of the patch grid are reversed."""
    return masks.unflatten(-1, grid).flip(-1).flatten(-2)
