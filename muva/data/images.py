"""Decoding and resizing of images: the only place where either happens."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from muva.errors import MuvaError

Interpolation = Literal["bicubic", "bilinear"]
"""Training images are resized bicubically, test images bilinearly (Sec. 4 of the method)."""

ImageLike = Image.Image | np.ndarray | bytes | bytearray | memoryview | Path | str
"""Everything that `as_rgb` turns into pixels; a `str` is a path."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MAX_CHANNELS = 4


class UnreadableImageError(MuvaError):
    """The bytes are not an image, or only part of one."""


def as_rgb(image: ImageLike) -> Image.Image:
    """The pixels of a picture in RGB, the same in whatever form the picture arrives.

    A picture is a path, encoded bytes, a PIL image, or an array of uint8 or uint16: (height, width)
    in greyscale, or (height, width, channels) in greyscale, greyscale and alpha, RGB, or RGBA. It
    is rotated upright according to its EXIF orientation, which an array does not have. 16 bits per
    channel become the upper 8, palettes and CMYK become RGB, and alpha is dropped: a transparent
    pixel keeps its colour.

    Raises MuvaError, which names the picture, if it cannot be read.
    """
    try:
        if isinstance(image, Image.Image):
            with _damage_explained():
                return _upright_rgb(image)
        if isinstance(image, np.ndarray):
            return _rgb_of_array(image)
        if isinstance(image, bytes | bytearray | memoryview):
            return decode_rgb(bytes(image))
        if isinstance(image, Path | str):
            return decode_rgb(Path(image).read_bytes())
    except (UnreadableImageError, OSError, ValueError) as error:  # ValueError: an invalid path
        raise MuvaError(f"{_described(image)}: {error}") from error
    raise MuvaError(
        f"an image of type {type(image).__name__}: expected a path, encoded bytes, an array of "
        "uint8, or a PIL image"
    )


def decode_rgb(encoded: bytes) -> Image.Image:
    """Decode a complete image to RGB, see `as_rgb`.

    Raises UnreadableImageError if the bytes are empty, truncated, too large, or not an image.
    """
    try:
        with _damage_explained(), Image.open(io.BytesIO(encoded)) as image:
            return _upright_rgb(image)
    except UnidentifiedImageError as error:
        what = "empty file" if not encoded else "not an image in a format that Pillow reads"
        raise UnreadableImageError(what) from error


@contextmanager
def _damage_explained() -> Iterator[None]:
    """Turn what Pillow raises for an image that it cannot load into an UnreadableImageError."""
    try:
        yield
    except UnidentifiedImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too many pixels: {error}") from error
    # Depending on the format, Pillow's decoders raise any of these for damaged files.
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, OverflowError,
            TypeError, AttributeError, struct.error) as error:  # fmt: skip
        raise UnreadableImageError(f"damaged or truncated: {error}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image in RGB and upright; the image itself stays as it is."""
    if image.mode in ("I", "F"):
        raise UnreadableImageError(
            f"32 bits per channel (mode {image.mode}): expected 8 or 16. Convert the image first"
        )
    if 0 in image.size:
        raise UnreadableImageError(f"no pixels: its size is {image.width} x {image.height}")
    image.load()  # metadata may follow the pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else transposing only copies
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip all values above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, and Pillow does not warn
    return image.convert("RGB")


def _rgb_of_array(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if (
        pixels.dtype not in (np.uint8, np.uint16)
        or pixels.ndim not in (2, 3)
        or not 1 <= channels <= _MAX_CHANNELS
        or not pixels.size
    ):
        raise MuvaError(
            f"an image array of {pixels.dtype} {pixels.shape}: expected uint8 (height, width, 3), "
            "or uint8 or uint16 with 1 to 4 channels"
        )
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).convert("RGB")


def _described(image: ImageLike) -> str:
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode} and size {image.size}"
    if isinstance(image, bytes | bytearray | memoryview):
        return f"an image of {len(image)} bytes"
    return str(image)


def resized(
    image: Image.Image, *, height: int, width: int, interpolation: Interpolation
) -> np.ndarray:
    """The resized image (height, width, 3) as uint8, antialiased when it becomes smaller."""
    return np.asarray(image.resize((width, height), _RESAMPLING[interpolation]))
