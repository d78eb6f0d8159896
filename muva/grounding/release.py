"""Part masks in the format of the authors' release: a pickle, read without executing it.

The pickle is a dict from the base name of an image to an array (R, L) that is 0 where a patch
belongs to the part and minus infinity elsewhere, row-major over the patch grid; or to boxes (R, 4)
as fractions, with NaN or None for parts that were not found. Base names are ambiguous: two images
of a data set may share one.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muva.errors import MuvaError
from muva.grounding.arrays_in_pickles import ForbiddenGlobalError, load_arrays


def read_release(file: Path) -> dict[str, np.ndarray]:
    """Base name -> bool mask (R, L), or float32 boxes (R, 4) with NaN for missing parts.

    Nothing in the pickle is executed. Raises MuvaError for any other content.
    """
    try:
        with file.open("rb") as opened:
            content = load_arrays(opened)
    except ForbiddenGlobalError as error:
        raise MuvaError(
            f"{file}: names {error}, which a dict of arrays does not need, and was not executed. "
            "Expected NumPy arrays and plain containers. If you trust the file, convert tensors "
            "with {name: mask.numpy() for name, mask in masks.items()}"
        ) from error
    except OSError as error:
        raise MuvaError(f"{file}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # bytes that are not a pickle can raise anything
        raise MuvaError(
            f"{file}: cannot be read ({type(error).__name__}: {error}); expected a pickle of a "
            "dict from base names to arrays of numbers"
        ) from error
    if not isinstance(content, Mapping) or not content:
        raise MuvaError(
            f"{file}: expected a dict from base names to arrays, found "
            f"{'an empty one' if isinstance(content, Mapping) else type(content).__name__}"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise MuvaError(f"{file}: expected base names, found the key {name!r}")
        arrays[name] = _array(value, f"{file}: {name}")
    shapes = Counter(array.shape for array in arrays.values())
    if len(shapes) > 1:
        (usual, _), (other, _) = shapes.most_common(2)
        example = next(name for name, array in arrays.items() if array.shape == other)
        raise MuvaError(
            f"{file}: expected one shape, found {other} for {example} and {usual} for most"
        )
    return arrays


def _array(value: Any, where: str) -> np.ndarray:
    rows = [[math.nan] * 4 if r is None else r for r in value] if _is_sequence(value) else value
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise MuvaError(
            f"{where}: expected an array (R, L), found rows of different lengths"
        ) from error
    if array.ndim != 2 or array.dtype.kind not in "bfiu":
        raise MuvaError(
            f"{where}: expected an array (parts, patches) of numbers, found shape "
            f"{array.shape} and dtype {array.dtype}"
        )
    if array.dtype.kind == "b":
        return array
    if array.shape[1] == 4:
        boxes = array.astype(np.float32)
        not_found = np.isnan(boxes).any(axis=1)
        in_range = (boxes >= 0) & (boxes <= 1)
        if not (in_range.all(axis=1) | not_found).all():
            raise MuvaError(f"{where}: expected boxes as fractions of the image, 0 to 1")
        ordered = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
        if not (ordered | not_found).all():
            raise MuvaError(f"{where}: expected boxes x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return boxes
    inside = array == 0
    if not (inside | np.isneginf(array)).all():
        raise MuvaError(
            f"{where}: expected 0 within the part and minus infinity elsewhere, found "
            f"{array[~inside].max():g}"
        )
    return inside


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def write_release(file: Path, masks: Mapping[str, np.ndarray]) -> None:
    """Write masks (R, L), True = inside, by base name, atomically and as the release does."""
    content = {
        name: np.where(mask, np.float32(0), np.float32(-np.inf)) for name, mask in masks.items()
    }
    temporary = file.with_name(f".{file.name}.partial")
    try:
        # Protocol 3 terminates names with a newline, so NumPy 2's name can be replaced with the
        # one that NumPy 1 also knows: the environments of the release predate NumPy 2.
        encoded = pickle.dumps(content, protocol=3)
        temporary.write_bytes(
            encoded.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n", 1)
        )
        temporary.replace(file)
    except OSError as error:
        raise MuvaError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def by_base_name(
    image_ids: Sequence[str], *, dataset: str, wanted: Container[str] | None = None
) -> dict[str, str]:
    """Base name -> image id; MuvaError if two images share a `wanted` (default: any) name."""
    image_id_of: dict[str, str] = {}
    for image_id in image_ids:
        name = base_name(image_id)
        if name in image_id_of and (wanted is None or name in wanted):
            raise MuvaError(
                f"{dataset}: the base name {name} belongs to both {image_id_of[name]} and "
                f"{image_id}, which the format of the release cannot distinguish. Ground the data "
                "set, or import its splits as separate data sets"
            )
        image_id_of[name] = image_id
    return image_id_of


def base_name(image_id: str) -> str:
    """The last component of an image id."""
    return image_id.rpartition("/")[2]


def grid_of(patches: int) -> tuple[int, int]:
    """Rows and columns of a grid twice as high as wide; MuvaError if there is no such grid."""
    columns = math.isqrt(patches // 2)
    if columns == 0 or 2 * columns * columns != patches:
        raise MuvaError(
            f"{patches} patches do not form a grid twice as high as wide. Use --grid ROWSxCOLUMNS"
        )
    return 2 * columns, columns
