"""A pickle of numpy arrays and plain containers, read without calling anything that it names.

What it names is replaced: by `_Array` and `_Dtype`, which take numpy's form as plain data and check
it. So no array is larger than its bytes in the file, and none holds objects.
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
"""Types of numbers as numpy writes them: bool, whole, floating."""

MAX_VALUES_PER_BYTE = 64
"""What is in a pickle once takes a byte or more; the same boxes may well stand at many names."""


def load_arrays(pickled: io.BufferedIOBase) -> Any:
    """What a pickle holds: dicts, lists, strings, numbers, and arrays of numbers; tuples as lists.

    Raises ForbiddenError for one that names anything else, and whatever damage leads to.
    """
    value = _Unpickler(pickled).load()
    return _arrays(value, _Budget(MAX_VALUES_PER_BYTE * pickled.tell()))


class ForbiddenGlobalError(Exception):
    """A pickle names something that is neither an array nor a plain container."""


class _Dtype:
    """What `numpy.dtype` is to a pickle."""

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
    """What an array is to a pickle: numpy fills it when the pickle gives its state."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, by_columns, content = state[-4:]
        self.values = _array_from_bytes(content, dtype, shape, "F" if by_columns else "C")


def _array_from_bytes(
    content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None
) -> np.ndarray:
    """The array of these bytes; ValueError unless they are as many as its shape needs."""
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    whole = all(type(side) is int and side >= 0 for side in shape)
    if not (isinstance(content, bytes | bytearray) and isinstance(dtype, _Dtype) and whole):
        raise ValueError("an array that is not in numpy's form")
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
    """How protocol 2 writes them."""
    return b""


def _bytes(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes some; no other codec runs."""
    if encoding != "latin1":
        raise ValueError(f"bytes in {encoding!r}")
    return text.encode("latin1")


_ALLOWED_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _bytes,
    "__builtin__.bytes": _no_bytes,  # Python 2 names, as protocol 2 has them
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
}
for _package in ("numpy.core", "numpy._core"):  # of numpy 1 and numpy 2
    _ALLOWED_GLOBALS[f"{_package}.multiarray._reconstruct"] = _empty_array
    _ALLOWED_GLOBALS[f"{_package}.multiarray.scalar"] = _scalar
    _ALLOWED_GLOBALS[f"{_package}.numeric._frombuffer"] = _array_from_bytes


# The one in Python, not the one in C: that one takes gigabytes for a memo's place in a few bytes.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED_GLOBALS:
            raise ForbiddenGlobalError(f"{module}.{name}")
        return _ALLOWED_GLOBALS[f"{module}.{name}"]


class _Budget:
    """How much a pickle may hold, for its size.

    A few hundred bytes can name one list in so many places that going through all takes for ever.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def spend(self) -> None:
        """For one thing more; ValueError where there is no room for it."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("containers that hold each other over and over")


def _arrays(value: Any, budget: _Budget) -> Any:
    """The value with arrays where the pickle had them."""
    budget.spend()
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {key: _arrays(entry, budget) for key, entry in value.items()}
    return [_arrays(entry, budget) for entry in value] if isinstance(value, list | tuple) else value
