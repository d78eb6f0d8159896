"""Textures: smooth noise, and the drawing functions for ground and backdrop."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats, Levels

Canvas = Floats
"""(H, W, 3) RGB, 0 to 255."""

_PERSISTENCE = 0.6
_MUTED = 0.6
"""Saturation of random colours."""


def noise(rng: Generator, height: int, width: int, *, octaves: int) -> Floats:
    """(H, W) with standard deviation 1: a sum of octaves, the coarsest being the strongest."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        shift = octaves - octave
        coarse = rng.standard_normal(
            (max(2, height >> shift), max(2, width >> shift)), dtype=np.float32
        )
        fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        total += fine * _PERSISTENCE**octave
    return total / (total.std() + 1e-6)


def canvas(
    rng: Generator, height: int, width: int, colour: tuple[float, ...], *, mottling: float
) -> Canvas:
    """A canvas in one colour with noise of `mottling` levels."""
    plain = np.tile(np.array(colour, np.float32) * rng.uniform(0.85, 1.13), (height, width, 1))
    return plain + mottling * noise(rng, height, width, octaves=6)[..., None]


def any_colour(rng: Generator, low: float, high: float) -> Floats:
    """A random RGB colour, muted like paint in a street."""
    colour = rng.uniform(low, high, 3)
    return colour.mean() + _MUTED * (colour - colour.mean())


def rectangle(on: Canvas, left: float, top: float, right: float, bottom: float, colour) -> None:
    """Fill a rectangle, corners in pixels."""
    rgb = tuple(float(channel) for channel in colour)
    cv2.rectangle(on, (int(left), int(top)), (int(right), int(bottom)), rgb, -1)


def disc(on: Canvas, x: float, y: float, radius: float, colour) -> None:
    """Fill a circle."""
    rgb = tuple(float(channel) for channel in colour)
    cv2.circle(on, (int(x), int(y)), max(1, int(radius)), rgb, -1)


def dome(on: Canvas, x: float, y: float, half_width: float, height: float, colour) -> None:
    """Fill the upper half of an ellipse."""
    rgb = tuple(float(channel) for channel in colour)
    axes = (int(half_width), int(height))
    cv2.ellipse(on, (int(x), int(y)), axes, 0, 180, 360, rgb, -1)


def finished(painting: Canvas, *, blur_px: float = 0.0) -> Levels:
    """The canvas as uint8, blurred if `blur_px` is not 0."""
    if blur_px:
        painting = cv2.GaussianBlur(painting, (0, 0), blur_px)
    return np.clip(painting, 0, 255).astype(np.uint8)
