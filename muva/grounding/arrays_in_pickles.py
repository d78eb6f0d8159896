"""Reads NumPy arrays and plain containers from a pickle without calling anything that it names.

The globals in the pickle are replaced by `_Array` and `_Dtype`, which accept NumPy's pickled state
as plain data and validate it. An array therefore cannot be larger than its bytes in the file, and
cannot contain objects.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections import OrderedDict
from typing import Any

import numpy as np

_NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")
"""NumPy's codes for bool, integer and floating-point dtypes."""

MAX_VALUES_PER_BYTE = 64
"""Limit on values per byte of the file. Everything stored takes at least a byte, but many names may
share the same boxes."""


def load_arrays(pickled: io.BufferedIOBase) -> Any:
    """The content of a pickle: dicts, lists, strings, numbers and numeric arrays.

    Tuples become lists. Raises ForbiddenGlobalError if it names any other global, and any
    exception if it is damaged.
    """
    value = _Unpickler(pickled).load()
    return _arrays(value, _Budget(MAX_VALUES_PER_BYTE * pickled.tell()))


class ForbiddenGlobalError(Exception):
    """A pickle names a global that is neither an array nor a plain container."""


class _Dtype:
    """Stands in for `numpy.dtype` while unpickling."""

    def __init__(self, code: str, *_: object) -> None:
        if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
            raise ValueError(f"an array of {code!r} instead of numbers")
        self.numpy_dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, subtype, names, *_ = state
        if byte_order not in ("<", ">", "|", "=") or subtype is not None or names is not None:
            raise ValueError("an array of records instead of numbers")
        self.numpy_dtype = self.numpy_dtype.newbyteorder(byte_order)


class _Array:
    """Stands in for an array while unpickling; filled from NumPy's pickled state."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, by_columns, content = state[-4:]
        self.values = _array_from_bytes(content, dtype, shape, "F" if by_columns else "C")


def _array_from_bytes(
    content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> np.ndarray:
    """The array with this content; ValueError unless the number of bytes matches the shape."""
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    whole = all(type(side) is int and side >= 0 for side in shape)
    if not (isinstance(content, bytes | bytearray) and isinstance(dtype, _Dtype) and whole):
        raise ValueError("an array that is not in NumPy's format")
    if len(content) != math.prod(shape) * dtype.numpy_dtype.itemsize:
        raise ValueError(f"an array of shape {shape} in {len(content)} bytes")
    values = np.frombuffer(content, dtype.numpy_dtype)
    if order == "K" and axes is not None:
        return values.reshape(shape).transpose(axes)
    return values.reshape(shape, order="F" if order == "F" else "C")


def _empty_array(*_: object) -> _Array:
    return _Array()


def _scalar(dtype: Any, content: Any) -> Any:
    return _array_from_bytes(content, dtype, (), "C").item()


def _no_bytes() -> bytes:
    """Protocol 2 writes empty bytes as a call of this."""
    return b""


def _bytes(text: Any, encoding: Any) -> bytes:
    """Protocol 2 writes other bytes as a call of this; no other codec is run."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


_ALLOWED_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": _no_bytes,  # protocol 2 uses the names of Python 2
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
}
for _package in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2
    _ALLOWED_GLOBALS[f"{_package}.multiarray._reconstruct"] = _empty_array
    _ALLOWED_GLOBALS[f"{_package}.multiarray.scalar"] = _scalar
    _ALLOWED_GLOBALS[f"{_package}.numeric._frombuffer"] = _array_from_bytes


# The Python implementation: in the C one, a few bytes can make the memo allocate gigabytes.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED_GLOBALS:
            raise ForbiddenGlobalError(f"{module}.{name}")
        return _ALLOWED_GLOBALS[f"{module}.{name}"]


class _Budget:
    """Limits how many values are visited, relative to the size of the pickle.

    A few hundred bytes can nest references to one list so that visiting all of them takes forever.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def spend(self) -> None:
        """Count one more value. Raises ValueError once the limit is exceeded."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("containers that are nested in each other again and again")


def _arrays(value: Any, budget: _Budget) -> Any:
    """The value with every `_Array` replaced by its NumPy array."""
    budget.spend()
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _arrays(entry, budget) for key, entry in value.items()}
    return [_arrays(entry, budget) for entry in value] if isinstance(value, list | tuple) else value
