"""Decoding and resizing of images: the only place where either happens."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from muva.data.plug_ins import register_plug_ins
from muva.data.records import encoded_file
from muva.errors import MuvaError

Interpolation = Literal["bicubic", "bilinear"]
"""Training images are resized bicubically, test images bilinearly (Sec. 4 of the method)."""

ImageLike = Image.Image | np.ndarray | bytes | bytearray | memoryview | Path | str
"""Everything that `as_rgb` turns into pixels; a `str` is a path."""

MAX_PIXELS_IN_FLIGHT = 64_000_000
"""How many pixels the threads of a process decode at a time, at some 10 bytes each."""

SHOWN_SIDE = 1024
"""The longest side of an image in a picture of people, which shows it much smaller."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_MAX_CHANNELS = 4
_turn = threading.Condition()
_pixels_in_flight = 0


register_plug_ins()
# Metadata that Pillow cannot read does not matter, and its warning names no image.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


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
    with _errors_naming(image), _opened(image) as opened:
        return _upright_rgb(opened)


def decode_rgb(encoded: bytes) -> Image.Image:
    """Decode a complete image to RGB, see `as_rgb`.

    Raises UnreadableImageError if the bytes are empty, truncated, too large, or not an image.
    """
    with _opened(encoded) as opened:
        return _upright_rgb(opened)


def decode_to_show(encoded: bytes) -> Image.Image:
    """Decode an image for a picture of people: photos are reduced, so that many fit into memory."""
    image = decode_rgb(encoded)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return image


def resized_rgb(
    image: ImageLike, *, height: int, width: int, interpolation: Interpolation
) -> np.ndarray:
    """A picture at a model's input size: `as_rgb`, then `resized`.

    Threads wait while other threads hold `MAX_PIXELS_IN_FLIGHT`. Raises MuvaError like `as_rgb`.
    """
    with _errors_naming(image), _opened(image) as opened, _in_flight(opened):
        return resized(
            _upright_rgb(opened), height=height, width=width, interpolation=interpolation
        )


def decode_resized(
    encoded: bytes, *, height: int, width: int, interpolation: Interpolation
) -> np.ndarray:
    """The same for encoded bytes; raises UnreadableImageError like `decode_rgb`."""
    with _opened(encoded) as opened, _in_flight(opened):
        return resized(
            _upright_rgb(opened), height=height, width=width, interpolation=interpolation
        )


@contextmanager
def _opened(image: ImageLike) -> Iterator[Image.Image]:
    """A picture as a PIL image, whose pixels may not be decoded yet.

    In the block, too, what Pillow raises for damaged images becomes an UnreadableImageError.
    """
    if isinstance(image, Image.Image):
        with _damage_explained():
            yield image
    elif isinstance(image, np.ndarray):
        yield _of_array(image)
    elif isinstance(image, bytes | bytearray | memoryview):
        with _damage_explained(), _identified(bytes(image)) as opened:
            yield opened
    elif isinstance(image, Path | str):
        encoded = encoded_file(Path(image))
        with _damage_explained(), _identified(encoded) as opened:
            yield opened
    else:
        raise MuvaError(
            f"an image of type {type(image).__name__}: expected a path, encoded bytes, an array of "
            "uint8, or a PIL image"
        )


def _identified(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError as error:
        what = "empty file" if not encoded else "not an image in a format that Pillow reads"
        raise UnreadableImageError(what) from error


@contextmanager
def _damage_explained() -> Iterator[None]:
    """Turn what Pillow raises for an image that it cannot load into an UnreadableImageError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(f"too many pixels: {error}") from error
    # Depending on the format, Pillow's decoders raise any of these for damaged files.
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, OverflowError,
            TypeError, AttributeError, RuntimeError, struct.error) as error:  # fmt: skip
        raise UnreadableImageError(f"damaged or truncated: {error}") from error


@contextmanager
def _errors_naming(image: ImageLike) -> Iterator[None]:
    try:
        yield
    except (UnreadableImageError, OSError, ValueError) as error:  # ValueError: an invalid path
        raise MuvaError(f"{_described(image)}: {error}") from error


@contextmanager
def _in_flight(image: Image.Image) -> Iterator[None]:
    """Wait until the pixels of an image fit into the limit; an image above it is alone."""
    global _pixels_in_flight
    pixels = image.width * image.height
    with _turn:
        _turn.wait_for(
            lambda: not _pixels_in_flight or _pixels_in_flight + pixels <= MAX_PIXELS_IN_FLIGHT
        )
        _pixels_in_flight += pixels
    try:
        yield
    finally:
        with _turn:
            _pixels_in_flight -= pixels
            _turn.notify_all()


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


def _of_array(pixels: np.ndarray) -> Image.Image:
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
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


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
