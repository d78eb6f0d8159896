"""Normalisation of pixels for the image encoder, by a lookup table with 256 entries per channel."""

from __future__ import annotations

from typing import no_type_check

import numpy as np
import torch
from torch import Tensor

from muva.compiled import compiled

Channels = tuple[float, float, float]


def normalised_pixels(pixels: np.ndarray, *, mean: Channels, std: Channels) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32: (x / 255 - mean) / std, per channel."""
    count, height, width, channels = pixels.shape
    levels = normalised_levels(
        torch.arange(256, dtype=torch.uint8).expand(1, channels, 1, 256), mean=mean, std=std
    )
    # NumPy allocates huge pages, so the first access to them costs almost nothing.
    normalised = np.empty((count, channels, height * width), np.float32)
    _look_up(pixels.reshape(count, -1, channels), levels.view(channels, 256).numpy(), normalised)
    return torch.from_numpy(normalised).view(count, channels, height, width)


def normalised_levels(pixels: Tensor, *, mean: Channels, std: Channels) -> Tensor:
    """The same by the formula, on the device of the tensor: (B, 3, H, W) uint8 -> float32."""
    return pixels.float().div_(255).sub_(_per_channel(mean, pixels)).div_(_per_channel(std, pixels))


def _per_channel(values: Channels, like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(3, 1, 1)


@compiled(nogil=True)
@no_type_check
def _look_up(pixels, levels, into):
    """Per image and channel: pixels (B, P, 3), levels (3, 256), into (B, 3, P)."""
    for image in range(len(pixels)):
        for pixel in range(pixels.shape[1]):
            into[image, 0, pixel] = levels[0, pixels[image, pixel, 0]]
            into[image, 1, pixel] = levels[1, pixels[image, pixel, 1]]
            into[image, 2, pixel] = levels[2, pixels[image, pixel, 2]]
