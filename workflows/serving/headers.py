"""The header of an image, which says what decoding would cost, before anything is decoded."""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image, UnidentifiedImageError

from workflows.serving.errors import invalid, too_large
from workflows.serving.settings import MEGABYTE, Limits

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What the service decodes. TIFF and the like hold data of many kinds, and nobody sends crops in
them."""

Image.init()  # else Pillow knows no WebP before it has failed to open one


def check_header(encoded: bytes, limits: Limits, *, where: str) -> None:
    """Check that bytes begin like an image of at most so many pixels.

    Raises:
        RequestError: they do not. Whether the rest is complete, only decoding tells.
    """
    if not encoded:
        raise invalid(f"{where}: an empty file", code="not_an_image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                pixels = image.width * image.height
    except UnidentifiedImageError as error:
        raise invalid(
            f"{where}: expected an image in JPEG, PNG, WebP or BMP, found something else",
            code="not_an_image",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(where, limits) from error
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, OverflowError,
            TypeError, AttributeError, RuntimeError, struct.error) as error:  # fmt: skip
        raise invalid(f"{where}: a damaged image", code="not_an_image") from error
    if pixels > limits.pixels:
        raise _too_many_pixels(where, limits)


def _too_many_pixels(where: str, limits: Limits) -> Exception:
    return too_large(
        f"{where}: expected an image of at most {limits.pixels / MEGABYTE:g} million pixels"
    )
