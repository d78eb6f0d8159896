"""Decoding and resizing of images: the only place where either happens."""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from muva.data.plug_ins import register_plug_ins
from muva.errors import MuvaError

Interpolation = Literal["bicubic", "bilinear"]
"""Training images are resized bicubically, test images bilinearly (Sec. 4 of the method)."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


register_plug_ins()


class UnreadableImageError(MuvaError):
    """The bytes are not an image, or only part of one."""


def decode_rgb(encoded: bytes) -> Image.Image:
    """Decode a complete image to RGB, rotated upright according to its EXIF orientation.

    Raises UnreadableImageError if the bytes are empty, truncated, too large, or not an image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("I", "F"):
                raise UnreadableImageError(
                    f"32 bits per channel (mode {image.mode}): expected 8 or 16. Convert the "
                    "image first"
                )
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow would clip all values above 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return upright.convert("RGB")
    except UnidentifiedImageError as error:
        what = "empty file" if not encoded else "not an image in a format that Pillow reads"
        raise UnreadableImageError(what) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too many pixels: {error}") from error
    # Depending on the format, Pillow's decoders raise any of these for damaged files.
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, OverflowError,
            TypeError, AttributeError, struct.error) as error:  # fmt: skip
        raise UnreadableImageError(f"damaged or truncated: {error}") from error


def resized(
    image: Image.Image, *, height: int, width: int, interpolation: Interpolation
) -> np.ndarray:
    """The resized image (height, width, 3) as uint8, antialiased when it becomes smaller."""
    return np.asarray(image.resize((width, height), _RESAMPLING[interpolation]))
