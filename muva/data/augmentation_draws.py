"""What augmentation does to each image of a batch, drawn from one seed per image.

An image's draw depends on its seed and on nothing else: not on its batch, nor on the process that
makes it. Each augmentation has random numbers of its own, so that switching one on leaves the draws
of the others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from muva.config import AugmentationConfig

ATTEMPTS = 10
"""Rectangles that are tried for random erasing until one fits into the image."""
_NUMBERS = {
    "pad": 2,
    "jitter": 5,
    "gamma": 1,
    "cast": 3,
    "grey": 1,
    "blur": 2,
    "low_resolution": 2,
    "sharpen": 2,
    "jpeg": 2,
    "erase": 3 + 2 * ATTEMPTS,
}
"""Augmentation -> how many random numbers it takes of an image's generator. Append new ones."""

Numbers = Float[np.ndarray, "B numbers"]
"""Uniform random numbers in [0, 1), of one augmentation."""


@dataclass(frozen=True, kw_only=True)
class AugmentationDraws:
    """What is done to each of B images, in this order."""

    shift: Int[np.ndarray, "B 2"]
    """Pixels by which the image moves to the right and down; what enters the frame is black."""
    gamma: Float[np.ndarray, " B"]
    """Exponent of the levels from 0 to 1."""
    gain: Float[np.ndarray, "B 3"]
    """Factor of each channel."""
    jitter: Float[np.ndarray, "B 4"]
    """Factors of brightness, contrast and saturation, and the rotation of hue in turns."""
    grey: Bool[np.ndarray, " B"]
    """Whether the image loses all colour."""
    blur_sigma: Float[np.ndarray, " B"]
    """Standard deviation in pixels; 0: no blur."""
    scale: Float[np.ndarray, " B"]
    """Scale of the low resolution; 1: none."""
    sharpening: Float[np.ndarray, " B"]
    """Amount of the unsharp mask; 0: none."""
    jpeg_quality: Int[np.ndarray, " B"]
    """0: no JPEG."""
    erased: Int[np.ndarray, "B 4"]
    """Rectangle of noise in pixels, x0, y0, x1, y1; all 0: none."""


def draw_augmentations(
    seeds: Int[np.ndarray, " B"], settings: AugmentationConfig, *, height: int, width: int
) -> AugmentationDraws:
    """Draw what is done to images of this size in pixels, one seed from 0 for each image."""
    total = sum(_NUMBERS.values())
    drawn = np.array([np.random.default_rng(seed).random(total) for seed in seeds.tolist()])
    columns = np.split(drawn.reshape(-1, total), np.cumsum([*_NUMBERS.values()])[:-1], axis=1)
    numbers = dict(zip(_NUMBERS, columns, strict=True))
    steps = 2 * settings.pad + 1
    return AugmentationDraws(
        shift=(numbers["pad"] * steps).astype(np.int64) - settings.pad,
        gamma=settings.gamma ** (2 * numbers["gamma"][:, 0] - 1),
        gain=1 + settings.cast * (2 * numbers["cast"] - 1),
        jitter=_jitter(numbers["jitter"], settings),
        grey=_happens(numbers["grey"], settings.grey),
        blur_sigma=_strength(numbers["blur"], settings.blur, settings.blur_sigma, without=0.0),
        scale=_strength(
            numbers["low_resolution"],
            settings.low_resolution,
            (settings.low_resolution_scale, 1.0),
            without=1.0,
        ),
        sharpening=_strength(
            numbers["sharpen"], settings.sharpen, (0.0, settings.sharpen_amount), without=0.0
        ),
        jpeg_quality=_jpeg_quality(numbers["jpeg"], settings),
        erased=_rectangles(numbers["erase"], settings, height=height, width=width),
    )


def _happens(numbers: Numbers, probability: float) -> np.ndarray:
    """Whether it happens to each image (B,), by the first of its numbers."""
    return numbers[:, 0] < probability


def _strength(
    numbers: Numbers, probability: float, ends: tuple[float, float], *, without: float
) -> np.ndarray:
    """Uniform between the ends where it happens, else `without` (B,)."""
    least, most = ends
    return np.where(_happens(numbers, probability), least + (most - least) * numbers[:, 1], without)


def _jitter(numbers: Numbers, settings: AugmentationConfig) -> np.ndarray:
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    largest = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    happens = _happens(numbers, settings.jitter)[:, None]
    return neutral + happens * largest * (2 * numbers[:, 1:] - 1)


def _jpeg_quality(numbers: Numbers, settings: AugmentationConfig) -> np.ndarray:
    least, most = settings.jpeg_quality
    quality = least + (numbers[:, 1] * (most - least + 1)).astype(np.int64)
    return np.where(_happens(numbers, settings.jpeg), quality, 0)


def _rectangles(
    numbers: Numbers, settings: AugmentationConfig, *, height: int, width: int
) -> np.ndarray:
    """The first rectangle of each image that fits, at a random place (B, 4)."""
    shapes = numbers[:, 3:].reshape(-1, 2, ATTEMPTS)
    (least_area, most_area), (flattest, tallest) = settings.erase_area, settings.erase_aspect
    area = height * width * (least_area + (most_area - least_area) * shapes[:, 0])
    aspect = flattest + (tallest - flattest) * shapes[:, 1]
    heights = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    widths = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (heights > 0) & (widths > 0) & (heights < height) & (widths < width)
    rows, first = np.arange(len(numbers)), fits.argmax(axis=1)
    tall, wide = heights[rows, first], widths[rows, first]
    x0 = (numbers[:, 1] * (width - wide + 1)).astype(np.int64)
    y0 = (numbers[:, 2] * (height - tall + 1)).astype(np.int64)
    erased = _happens(numbers, settings.erase) & fits.any(axis=1)
    return np.stack([x0, y0, x0 + wide, y0 + tall], axis=1) * erased[:, None]
