"""Augmentation of training images: other framings, colours and image qualities of the same people.

It works on decoded images of the training's size, as bytes. The order is that of a camera: the
framing, the sensor's gamma and white balance, colour processing, lens blur, low resolution,
sharpening and JPEG; random erasing comes last. OpenCV alters one image at a time, several times as
fast as torchvision does (`python -m benchmarks.augmentation`), and all changes of colour are one
matrix per image, so that levels are rounded once.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from muva.config import AugmentationConfig
from muva.data.augmentation_draws import AugmentationDraws, draw_augmentations

LUMA = np.array([0.299, 0.587, 0.114])
"""The weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""
SHARPENING_SIGMA_PX = 1.0

_YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""RGB -> brightness and two axes of colour, around whose origin hue is rotated (NTSC, 1953)."""
_NOISE = 1
"""The random stream of an image's seed from which erased pixels are drawn."""

Pixels = UInt8[np.ndarray, "B H W 3"]


def augmented(
    pixels: Pixels, seeds: Int[np.ndarray, " B"], settings: AugmentationConfig
) -> tuple[Pixels, Int[np.ndarray, "B 2"]]:
    """Augmented copies of RGB images, and by how many pixels each has moved to the right and down.

    What happens to an image depends on its seed alone, an integer from 0. The same seed gives the
    same bytes; another version of OpenCV, or another kind of CPU, may round a level differently.
    """
    height, width = pixels.shape[1:3]
    draws = draw_augmentations(seeds, settings, height=height, width=width)
    altered = _shifted(pixels, draws.shift)  # a copy, which the others change in place
    if settings.gamma > 1 or settings.cast > 0:
        _map_levels(altered, draws)
    _change_colours(altered, draws)
    _degrade(altered, draws)
    _erase(altered, draws, seeds)
    return altered, draws.shift


def _shifted(pixels: Pixels, shift: Int[np.ndarray, "B 2"]) -> Pixels:
    """Each image moved within its frame: a crop of the image padded with black."""
    if not shift.any():
        return pixels.copy()
    shifted = np.zeros_like(pixels)
    height, width = pixels.shape[1:3]
    for number, (dx, dy) in enumerate(shift.tolist()):
        rows, columns = (
            slice(max(dy, 0), height + min(dy, 0)),
            slice(max(dx, 0), width + min(dx, 0)),
        )
        from_rows = slice(max(-dy, 0), height - max(dy, 0))
        from_columns = slice(max(-dx, 0), width - max(dx, 0))
        shifted[number, rows, columns] = pixels[number, from_rows, from_columns]
    return shifted


def _map_levels(pixels: Pixels, draws: AugmentationDraws) -> None:
    """Gamma and gains, by a table of 256 levels for each image and channel."""
    curves = (np.arange(256) / 255) ** draws.gamma[:, None]
    tables = _levels(255 * curves[:, :, None] * draws.gain[:, None, :])
    for image, table in zip(pixels, tables, strict=True):
        cv2.LUT(image, table[None], dst=image)


def _change_colours(pixels: Pixels, draws: AugmentationDraws) -> None:
    """Jitter and greyscale: a matrix for each image, and an offset that all channels share."""
    changed = (draws.jitter != (1, 1, 1, 0)).any(axis=1) | draws.grey
    numbers = np.flatnonzero(changed)
    if not len(numbers):
        return
    brightness, contrast, saturation, hue = draws.jitter[numbers].T
    means = np.array([cv2.mean(pixels[number])[:3] for number in numbers])
    offsets = (1 - contrast) * brightness * (means @ LUMA)
    matrices = (brightness * contrast)[:, None, None] * (
        _desaturation(1.0 - draws.grey[numbers]) @ hue_rotation(hue) @ _desaturation(saturation)
    )
    # Neither rotation nor desaturation changes a grey, so that the offset is added at the end.
    columns = np.broadcast_to(offsets[:, None, None], (len(numbers), 3, 1))
    affine = np.concatenate([matrices, columns], axis=2).astype(np.float32)
    for number, matrix in zip(numbers, affine, strict=True):
        cv2.transform(pixels[number], matrix, dst=pixels[number])


def _desaturation(factor: Float[np.ndarray, " B"]) -> Float[np.ndarray, "B 3 3"]:
    """Matrices that blend a colour with the grey of its brightness; factor 1: no change."""
    return factor[:, None, None] * np.eye(3) + (1 - factor)[:, None, None] * LUMA


def hue_rotation(turns: Float[np.ndarray, " B"]) -> Float[np.ndarray, "B 3 3"]:
    """RGB matrices that rotate hue and keep brightness, as a rotation of the colour axes of YIQ."""
    angle = 2 * np.pi * turns
    rotation = np.zeros((len(turns), 3, 3))
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.linalg.inv(_YIQ) @ rotation @ _YIQ


def _degrade(pixels: Pixels, draws: AugmentationDraws) -> None:
    """Blur, low resolution, sharpening and JPEG, the last two at the low resolution."""
    strengths = zip(
        draws.blur_sigma.tolist(),
        draws.scale.tolist(),
        draws.sharpening.tolist(),
        draws.jpeg_quality.tolist(),
        strict=True,
    )
    height, width = pixels.shape[1:3]
    for number, (sigma, scale, sharpening, quality) in enumerate(strengths):
        image = whole = pixels[number]
        if sigma:
            image = cv2.GaussianBlur(image, (0, 0), sigma)
        if scale < 1:
            low = (max(1, round(scale * width)), max(1, round(scale * height)))
            image = cv2.resize(image, low, interpolation=cv2.INTER_AREA)
        if sharpening:
            blurred = cv2.GaussianBlur(image, (0, 0), SHARPENING_SIGMA_PX)
            image = cv2.addWeighted(image, 1 + sharpening, blurred, -sharpening, 0)
        if quality:
            image = _compressed(image, quality)
        if scale < 1:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        if image is not whole:
            whole[:] = image


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """An RGB image (H, W, 3) after JPEG with chroma at half the resolution."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def _erase(pixels: Pixels, draws: AugmentationDraws, seeds: Int[np.ndarray, " B"]) -> None:
    """Random levels in each erased rectangle."""
    for number in np.flatnonzero(draws.erased.any(axis=1)).tolist():
        x0, y0, x1, y1 = draws.erased[number].tolist()
        noise = np.random.default_rng([int(seeds[number]), _NOISE])
        pixels[number, y0:y1, x0:x1] = noise.integers(0, 256, (y1 - y0, x1 - x0, 3), np.uint8)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
