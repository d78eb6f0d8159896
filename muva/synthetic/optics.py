"""Optics of the open world: what lens, sensor, processing and codec of any camera do.

The sensors of the six named domains (`sensor`) are soft and have one colour cast each. Those here
cover what cameras in use deliver: over- and underexposure with clipped highlights and crushed
shadows, tone curves, a white balance that changes from image to image, sharpening with halos, and
any resolution. Lengths are in pixels of a crop 256 pixels high.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats, Levels
from muva.synthetic.sensor import REFERENCE_HEIGHT_PX, decode_jpeg, encode_jpeg

_MID_GREY = 0.42
"""Where a contrast curve leaves a value as it is."""
_STRONG_CAST = 0.25
"""Share of cameras with a white balance that is far off."""
_MOTION_BLURRED = 0.08
"""Share of images with motion blur."""
_SHARPENING_REACH_PX = (0.8, 2.2)
"""Standard deviation of the blur that sharpening subtracts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optics:
    """Everything between the light and the image of one camera."""

    grey: float
    """The level, 0 to 1, to which automatic exposure brings the mean of an image."""
    metering: float
    """How completely it does: 0 not at all, 1 completely."""
    exposure_change: float
    """Standard deviation of the logarithm of the exposure from image to image."""
    balance: Floats
    """(3,) gains of red, green and blue."""
    balance_change: float
    """Standard deviation of their logarithm from image to image: automatic white balance."""
    shoulder: float
    """How strongly highlights are compressed before they are clipped."""
    gamma: float
    contrast: float
    """Slope of the tone curve at mid grey."""
    black: float
    """The level that becomes black; negative for a veil of stray light."""
    floor: float
    """The darkest level that occurs, 0 to 1: that of video whose range nothing expands."""
    saturation: float
    native_height_px: float
    blur_px: float
    sharpening: float
    """Share of the detail that is added again: halos at edges."""
    sharpening_reach_px: float
    noise: float
    """Standard deviation of the noise, in levels of 0..255."""
    jpeg_quality: tuple[int, int]


def typical_optics(rng: Generator) -> Optics:
    """A camera like those of surveillance networks: exposed well, with little cast."""
    temperature, tint = rng.normal(0.02, 0.02), rng.normal(-0.015, 0.012)
    quality = int(rng.uniform(55, 88))
    return Optics(
        grey=rng.uniform(0.28, 0.38),
        metering=rng.uniform(0.75, 0.95),
        exposure_change=rng.uniform(0.04, 0.1),
        balance=np.exp([temperature, tint, -temperature]).astype(np.float32),
        balance_change=rng.uniform(0.01, 0.03),
        shoulder=rng.uniform(0.05, 0.3),
        gamma=rng.uniform(0.9, 1.1),
        contrast=rng.uniform(1.2, 1.5),
        black=rng.uniform(-0.09, -0.03),
        floor=rng.uniform(0.062, 0.085),
        saturation=rng.uniform(0.35, 0.75),
        native_height_px=rng.uniform(110, 200),
        blur_px=rng.uniform(0.5, 1.1),
        sharpening=rng.uniform(0.1, 0.9),
        sharpening_reach_px=rng.uniform(*_SHARPENING_REACH_PX),
        noise=rng.uniform(0.2, 1.2),
        jpeg_quality=(quality, quality + 10),
    )


def draw_optics(rng: Generator) -> Optics:
    """Any camera."""
    strong = 3.6 if rng.random() < _STRONG_CAST else 1.0
    temperature, tint = (
        rng.normal(0.015, 0.045 * strong),
        rng.normal(-0.02 * strong, 0.026 * strong),
    )
    quality = int(rng.uniform(30, 88))
    return Optics(
        grey=float(np.clip(rng.normal(0.385, 0.095), 0.17, 0.65)),
        metering=rng.uniform(0.3, 0.9),
        exposure_change=rng.uniform(0.03, 0.14),
        balance=np.exp([temperature, tint, -temperature]).astype(np.float32),
        balance_change=rng.uniform(0.005, 0.035),
        shoulder=rng.uniform(0, 0.35),
        gamma=rng.uniform(0.8, 1.2),
        contrast=rng.uniform(0.85, 1.4),
        black=rng.uniform(-0.09, 0.035),
        floor=max(0.0, rng.uniform(-0.06, 0.1)),
        saturation=rng.uniform(0.1, 1.0),
        native_height_px=float(np.exp(rng.uniform(np.log(90), np.log(256)))),
        blur_px=rng.uniform(0.2, 1.5),
        sharpening=max(0.0, rng.uniform(-0.4, 1.8)),
        sharpening_reach_px=rng.uniform(*_SHARPENING_REACH_PX),
        noise=rng.uniform(0.5, 6) * rng.uniform(0.2, 1),
        jpeg_quality=(quality, quality + 10),
    )


def photograph(light: Floats, optics: Optics, rng: Generator) -> Levels:
    """(H, W, 3) uint8: the image that the camera delivers of light (H, W, 3), 255 being white."""
    height, width = light.shape[:2]
    picture = _focused(_at_native_size(light / np.float32(255), optics, rng), optics, rng, height)
    picture = _toned(picture, optics, rng)
    picture = _noisy(picture, optics, rng)
    picture = _sharpened(picture, optics, height)
    span = np.float32(255 * (1 - optics.floor))
    levels = (np.clip(picture, 0, 1) * span + (255.5 - span)).astype(np.uint8)
    levels = decode_jpeg(encode_jpeg(levels, quality=int(rng.integers(*optics.jpeg_quality))))
    if levels.shape[0] != height:
        levels = cv2.resize(levels, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(levels)


def _at_native_size(picture: Floats, optics: Optics, rng: Generator) -> Floats:
    height, width = picture.shape[:2]
    share = optics.native_height_px * rng.uniform(0.75, 1.2) / REFERENCE_HEIGHT_PX
    if share >= 1 or share * REFERENCE_HEIGHT_PX >= height:
        return picture
    share = share * REFERENCE_HEIGHT_PX / height
    size = (max(8, round(width * share)), max(16, round(height * share)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _focused(picture: Floats, optics: Optics, rng: Generator, height: int) -> Floats:
    """Blurred by the lens, and in some images by motion."""
    scale = min(height, picture.shape[0]) / REFERENCE_HEIGHT_PX
    sigma = optics.blur_px * rng.uniform(0.6, 1.3) * scale
    if sigma > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if rng.random() < _MOTION_BLURRED:
        picture = cv2.blur(picture, (max(2, round(rng.uniform(3, 7) * scale)), 1))
    return picture


def _toned(picture: Floats, optics: Optics, rng: Generator) -> Floats:
    """Exposure, white balance, tone curve and saturation; clipped to 0..1."""
    exposure = (optics.grey / max(1e-3, float(picture.mean()))) ** optics.metering
    exposure *= np.exp(rng.normal(0, optics.exposure_change))
    balance = optics.balance * np.exp(rng.normal(0, optics.balance_change, 3)).astype(np.float32)
    picture = picture * (np.float32(exposure) * balance)
    picture = (
        picture * np.float32(1 + optics.shoulder) / (1 + np.float32(optics.shoulder) * picture)
    )
    picture = np.clip(picture, 0, 1) ** np.float32(optics.gamma)
    picture = (picture - np.float32(_MID_GREY)) * np.float32(optics.contrast) + np.float32(
        _MID_GREY
    )
    picture = (picture - np.float32(optics.black)) / np.float32(1 - optics.black)
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    picture = grey[..., None] + (picture - grey[..., None]) * np.float32(optics.saturation)
    return np.clip(picture, 0, 1)


def _noisy(picture: Floats, optics: Optics, rng: Generator) -> Floats:
    grain = rng.standard_normal(picture.shape[:2], dtype=np.float32)[..., None]
    colour = rng.standard_normal(picture.shape, dtype=np.float32)
    strength = np.float32(optics.noise / 255) * np.sqrt(np.float32(0.3) + picture)
    return picture + (np.float32(0.8) * grain + np.float32(0.5) * colour) * strength


def _sharpened(picture: Floats, optics: Optics, height: int) -> Floats:
    if optics.sharpening <= 0:
        return picture
    reach = max(
        0.5, optics.sharpening_reach_px * min(height, picture.shape[0]) / REFERENCE_HEIGHT_PX
    )
    smooth = cv2.GaussianBlur(picture, (0, 0), reach)
    return picture + np.float32(optics.sharpening) * (picture - smooth)
