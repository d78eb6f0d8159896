"""The script with which MLflow serves a logged model: maps a column of images to features.

The model contains a copy of this file instead of a pickle (MLflow's "models from code"). MLflow
runs it wherever it loads or serves the model, which needs `muva` to be installed. Nothing imports
it.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from PIL import Image

import muva
from muva.data.images import ImageLike
from muva.errors import MuvaError

COLUMN, BUNDLE = "image", "bundle"
DEVICE = "MUVA_DEVICE"
"""Environment variable for the device on which images are embedded: `cpu` or `cuda`."""
_LONGEST_PATH = 4096


class ImagesToFeatures(PythonModel):
    """Embeds images with the bundle, which is loaded once."""

    def load_context(self, context: Any) -> None:
        """Load the bundle from the model's artifacts."""
        self._bundle = muva.load(context.artifacts[BUNDLE]).to(os.environ.get(DEVICE, "cpu"))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, context: Any, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Features (B, F) of unit length, float32, of a table's column `image`.

        An image is a path, encoded bytes, encoded bytes in base64, a PIL image, or pixels (height,
        width, 3) from 0 to 255, as an array or nested lists. They become pixels as in
        `muva.data.images.as_rgb`.

        Raises:
            MlflowException: the input is invalid; a server responds with a client error.
        """
        try:
            column = list(model_input[COLUMN])
        except (KeyError, IndexError, TypeError) as error:
            raise _invalid(f"expected a table with the column {COLUMN}") from error
        try:
            return self._bundle.embed([as_image(row, value) for row, value in enumerate(column)])
        except MuvaError as error:
            raise _invalid(str(error)) from error


def as_image(row: int, value: Any) -> ImageLike:
    """Convert a cell of the table to an image for `Embedder.embed`."""
    if isinstance(value, bytes | bytearray | memoryview | Path | Image.Image):
        return value
    if isinstance(value, str):
        return _file(value) or _decoded(row, value)
    return _pixels(row, value)


def _file(text: str) -> Path | None:
    """The path in a text; None if there is no such file."""
    try:
        path = Path(text)
        return path if len(text) < _LONGEST_PATH and path.is_file() else None
    except (OSError, ValueError):  # not a valid file name
        return None


def _decoded(row: int, text: str) -> bytes:
    if len(text) < _LONGEST_PATH and "\0" not in text and Path(text).is_dir():
        raise _invalid(f"row {row}: {text!r} is a folder: expected the path of an image")
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(
            f"row {row}: {text[:80]!r} is neither an existing file nor a base64-encoded image"
        ) from error


def _pixels(row: int, value: Any) -> np.ndarray:
    """Pixels as an array that `Embedder.embed` takes, or refuses if the shape is wrong."""
    if isinstance(value, np.ndarray) and value.dtype in (np.uint8, np.uint16):
        return value
    try:
        pixels = np.array(value.tolist() if isinstance(value, np.ndarray) else value)
    except ValueError:
        pixels = np.empty(0)
    whole = pixels.dtype.kind in "iu" and pixels.ndim in (2, 3)
    if not whole or pixels.min(initial=0) < 0 or pixels.max(initial=0) > 255:
        raise _invalid(
            f"row {row}: expected a path, encoded bytes, base64, or integers from 0 to 255 of "
            f"shape (height, width, 3); found {type(value).__name__} of shape {pixels.shape}"
        )
    return pixels.astype(np.uint8)


def _invalid(text: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(f"Images to embed: {text}")


set_model(ImagesToFeatures())
