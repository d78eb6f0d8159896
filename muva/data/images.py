"""Encoded images -> pixels: the one place where images are decoded and resized."""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from muva.errors import MuvaError

Interpolation = Literal["bicubic", "bilinear"]
"""Training images are resized bicubically, test images bilinearly (Sec. 4 of the method)."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class UnreadableImageError(MuvaError):
    """Bytes that are no image, or not a whole one."""


def decode_rgb(encoded: bytes) -> Image.Image:
    """The whole image in RGB, turned upright if its camera noted how it was held.

    Raises UnreadableImageError for what is empty, truncated, too large or no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("I", "F"):
                raise UnreadableImageError(
                    f"32 bits a channel (mode {image.mode}): expected 8 or 16; convert it first"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would cut off all that is above 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except UnidentifiedImageError as error:
        what = "empty file" if not encoded else "not an image in a format that Pillow reads"
        raise UnreadableImageError(what) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too many pixels: {error}") from error
    # Pillow's decoders report damage by any of these, depending on the format.
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, OverflowError,
            TypeError, AttributeError, struct.error) as error:  # fmt: skip
        raise UnreadableImageError(f"damaged or truncated: {error}") from error


def resized(
    image: Image.Image, *, height: int, width: int, interpolation: Interpolation
) -> np.ndarray:
    """Pixels (height, width, 3), uint8, antialiased where they become fewer."""
    return np.asarray(image.resize((width, height), _RESAMPLING[interpolation]))
