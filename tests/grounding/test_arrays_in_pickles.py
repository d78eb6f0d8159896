"""Pickles are read as data: what they name is never called, and no byte counts twice."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muva.grounding.arrays_in_pickles import ForbiddenGlobalError, load_arrays


def reads(pickled: bytes) -> Any:
    return load_arrays(io.BytesIO(pickled))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_containers_are_read_as_by_pickle(protocol: int) -> None:
    rng = np.random.default_rng(0)
    grey = rng.random((3, 4, 5))
    sent = OrderedDict(
        mask=np.where(grey[0] > 0.5, np.float32(0), np.float32(-np.inf)),
        bools=grey[0] > 0.5,
        halves=grey.astype(np.float16),
        swapped=grey.astype(">f8"),
        by_columns=np.asfortranarray(grey[0]),
        turned=grey.transpose(1, 0, 2),
        cut=grey[:, ::2, 1:3],
        empty=np.zeros((0, 4)),
        boxes=[[np.float32(0.5), 0.25, 1, True], None],
    )
    pickled = pickle.dumps(sent, protocol=protocol)
    np.testing.assert_equal(reads(pickled), dict(pickle.loads(pickled)))


def calling(function: Callable[..., object], *arguments: object) -> object:
    class Calling:
        def __reduce__(self) -> tuple[Any, ...]:
            return function, arguments

    return Calling()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("what", "name"),
    [
        (calling(os.system, "touch ran"), "posix.system"),
        (calling(eval, "open('ran', 'w')"), "eval"),
        (calling(getattr, "a", "join"), "getattr"),
        (calling(np.save, "ran.npy", 0), "numpy.save"),
        (np.ma.zeros(3), "_mareconstruct"),
    ],
)
def test_other_globals_are_named_and_not_called(
    what: object, name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps({"a.jpg": what}, protocol=protocol)
    with pytest.raises(ForbiddenGlobalError, match=name):
        reads(pickled)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "what",
    [
        np.array([1, "a"], object),
        np.zeros(2, [("a", "f4")]),
        np.array(["a"]),
        np.array(["2020"], "M8[D]"),
        calling(codecs.encode, "a", "rot13"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_anything_but_numbers_are_rejected(what: object, protocol: int) -> None:
    with pytest.raises((ValueError, ForbiddenGlobalError)):
        reads(pickle.dumps(what, protocol=protocol))


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


ARRAY, RECONSTRUCT = named("numpy", "ndarray"), named("numpy.core.multiarray", "_reconstruct")


@pytest.mark.parametrize(
    "pickled",
    [
        # Four bytes as 2^40 numbers by strides of 0; uninitialised memory; the same in a state.
        ARRAY
        + b"("
        + number(2**40)
        + b"\x85X\2\0\0\0f4C\4aaaa"
        + number(0)
        + number(0)
        + b"\x85tR.",
        ARRAY + number(2**40) + b"\x85\x85R.",
        RECONSTRUCT + ARRAY + number(2**40) + b"\x85C\1b\x87R.",
        b"\x80\5\x96" + struct.pack("<Q", 2**62) + b".",
        b"\x80\4\x8e" + struct.pack("<Q", 2**62) + b".",
        b"}r" + struct.pack("<I", 2**32 - 1) + b".",
        b"]2" * 50 + b".",
    ],
    ids=["strides", "unfilled", "reconstructed", "bytearray", "bytes", "memo", "stack"],
)
def test_a_few_bytes_cannot_fill_the_memory(pickled: bytes) -> None:
    tracemalloc.start()
    try:
        content = reads(pickled)
    except Exception as error:  # any rejection is fine
        content = error
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not isinstance(content, np.ndarray)
    assert peak_bytes < 1e6


def test_exponentially_nested_lists_are_rejected_quickly() -> None:
    nested: list[Any] = []
    for _ in range(60):
        nested = [nested, nested]
    with pytest.raises(ValueError, match="again and again"):
        reads(pickle.dumps({"a.jpg": nested}))
    shared = [[0.1, 0.1, 0.9, 0.9]] * 3
    names = [f"{number:08d}.jpg" for number in range(50)]
    assert reads(pickle.dumps(dict.fromkeys(names, shared))) == dict.fromkeys(names, shared)
