"""Sensors: how a camera and its codec turn light into an image.

Lengths are in pixels of a crop 256 pixels high and scale with the image, so that a smaller image is
the same image with less detail.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from muva.synthetic.arrays import Floats, Levels
from muva.synthetic.domain import Imaging

Picture = Floats
"""(H, W, 3) RGB light; 255 is white."""

REFERENCE_HEIGHT_PX = 256
_SHOULDER = 0.12
"""How strongly highlights are compressed."""
_MOTION_BLURRED = 0.2
"""Share of images with horizontal motion blur."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensor:
    """The sensor of one camera."""

    gain: Floats
    """(3,) RGB."""
    gamma: float
    saturation: float
    native_height_px: float
    blur_px: float
    noise: float
    jpeg_quality: tuple[int, int]


def draw_sensor(imaging: Imaging, rng: Generator) -> Sensor:
    """A random variation of the domain's imaging for one camera."""
    gain = np.array(imaging.gain) * rng.normal(1, 0.035, 3) * rng.uniform(0.9, 1.1)
    return Sensor(
        gain=gain.astype(np.float32),
        gamma=imaging.gamma * rng.uniform(0.94, 1.06),
        saturation=imaging.saturation * rng.uniform(0.85, 1.12),
        native_height_px=rng.uniform(*imaging.native_height_px),
        blur_px=rng.uniform(*imaging.blur_px),
        noise=rng.uniform(*imaging.noise),
        jpeg_quality=imaging.jpeg_quality,
    )


def expose(light: Picture, sensor: Sensor, rng: Generator) -> Levels:
    """(H, W, 3) uint8: the image that the camera delivers."""
    height, width = light.shape[:2]
    picture = _develop(light, sensor)
    picture = _at_native_size(picture, sensor, rng)
    picture = _blurred(picture, sensor, rng, scale=height / REFERENCE_HEIGHT_PX)
    picture = _compressed(_noisy(picture, sensor, rng), sensor, rng)
    if picture.shape[0] != height:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(picture)


def _develop(light: Picture, sensor: Sensor) -> Picture:
    """Tone curve, white balance, gamma and saturation; the result is in 0..1."""
    picture = np.clip(light / 255, 0, 4)
    picture = picture / (1 + _SHOULDER * picture)
    picture = np.clip(picture * sensor.gain, 0, 1) ** np.float32(sensor.gamma)
    grey = picture.mean(axis=2, keepdims=True)
    return np.clip(grey + (picture - grey) * np.float32(sensor.saturation), 0, 1)


def _at_native_size(picture: Picture, sensor: Sensor, rng: Generator) -> Picture:
    height, width = picture.shape[:2]
    share = sensor.native_height_px * rng.uniform(0.8, 1.1) / REFERENCE_HEIGHT_PX
    if share >= 1:
        return picture
    size = (max(8, int(width * share)), max(16, int(height * share)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _blurred(picture: Picture, sensor: Sensor, rng: Generator, *, scale: float) -> Picture:
    sigma = sensor.blur_px * rng.uniform(0.6, 1.2) * scale
    moves, distance = rng.random() < _MOTION_BLURRED, rng.uniform(3, 6)
    if sigma > 0.1:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if moves:
        picture = cv2.blur(picture, (max(2, round(distance * scale)), 1))
    return picture


def _noisy(picture: Picture, sensor: Sensor, rng: Generator) -> Picture:
    """Noise that increases with the light, like photon noise."""
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    return picture + grain * np.float32(sensor.noise / 255) * np.sqrt(0.5 + picture)


def _compressed(picture: Picture, sensor: Sensor, rng: Generator) -> Levels:
    quality = int(rng.integers(*sensor.jpeg_quality))
    levels = (np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return decode_jpeg(encode_jpeg(levels, quality=quality))


def encode_jpeg(image: Levels, *, quality: int) -> bytes:
    """Encode (H, W, 3) RGB as JPEG."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode an image of shape {image.shape} as JPEG")
    return encoded.tobytes()


def decode_jpeg(encoded: bytes) -> Levels:
    """Decode a JPEG to (H, W, 3) RGB."""
    bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError(f"{len(encoded)} bytes are not an image that OpenCV can decode")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
