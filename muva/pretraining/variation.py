"""Random variation of images for pre-training, on whole batches: framing, light, colour, sharpness.

Unlike `muva.data.augmentation`, it serves no experiment: its strength is fixed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate

_ZOOM, _SHIFT = (0.85, 1.12), 0.08
"""Range of the zoom, and standard deviation of the shift as a share of half the image."""
_GREY, _BLURRED, _COARSE, _ERASED = 0.1, 0.2, 0.15, 0.35
"""Shares of the images."""
_LUMA = (0.299, 0.587, 0.114)


def varied(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Images (B, 3, H, W) with values 0 to 1, each varied on its own; some are mirrored."""
    pixels = _framed(pixels, rng)
    pixels = _softened(pixels, rng)
    return _erased(_toned(pixels, rng), rng)


def _framed(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    count = len(pixels)
    zoom_y = rng.uniform(*_ZOOM, count)
    zoom_x = zoom_y * rng.uniform(0.9, 1.1, count) * np.where(rng.random(count) < 0.5, -1, 1)
    window = np.zeros((count, 2, 3), np.float32)
    window[:, 0, 0], window[:, 1, 1] = zoom_x, zoom_y
    window[:, :, 2] = rng.normal(0, _SHIFT, (count, 2))
    grid = affine_grid(torch.from_numpy(window), list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, align_corners=False, padding_mode="border")


def _softened(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    draw = rng.random(len(pixels))
    blurred = torch.from_numpy(draw < _BLURRED)
    coarse = torch.from_numpy((draw >= _BLURRED) & (draw < _BLURRED + _COARSE))
    pixels = pixels.clone()
    pixels[blurred] = avg_pool2d(pixels[blurred], 3, stride=1, padding=1, count_include_pad=False)
    size = pixels.shape[2:]
    pixels[coarse] = interpolate(
        avg_pool2d(pixels[coarse], 2), size=size, mode="bilinear", align_corners=False
    )
    return pixels


def _toned(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Exposure, white balance, gamma, contrast and saturation."""
    count = len(pixels)

    def one_each(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).view(count, -1, 1, 1)

    cast = rng.normal(0, 0.07, (count, 3)) * rng.choice([0.5, 2.0], (count, 1), p=[0.7, 0.3])
    pixels = pixels * one_each(np.exp(rng.normal(0, 0.2, (count, 1)) + cast))
    pixels = pixels.clamp(1e-4, 1) ** one_each(np.exp(rng.uniform(-0.35, 0.35, count)))
    luma = (pixels * torch.tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    saturation = rng.uniform(0.4, 1.4, count) * (rng.random(count) >= _GREY)
    pixels = luma + (pixels - luma) * one_each(saturation)
    middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * one_each(rng.uniform(0.65, 1.3, count))
    return pixels.clamp(0, 1)


def _erased(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """A rectangle of some images is one colour (Zhong et al., AAAI 2020)."""
    height, width = pixels.shape[2:]
    for number in np.flatnonzero(rng.random(len(pixels)) < _ERASED):
        tall, wide = (int(size * rng.uniform(0.15, 0.5)) for size in (height, width))
        top, left = rng.integers(height - tall), rng.integers(width - wide)
        colour = torch.from_numpy(rng.uniform(0, 1, (3, 1, 1)).astype(np.float32))
        pixels[number, :, top : top + tall, left : left + wide] = colour
    return pixels
