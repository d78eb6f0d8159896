"""A record: one image of one person and its annotations, before the image is read.

Readers (`muva.data.benchmarks`, `muva.synthetic`) yield records; `write_shards` reads, checks and
stores the images. Creating a record opens no file: its image is a path or encoded bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "query", "gallery"]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's width and height; x1 and y1 exclusive."""

MAX_FILE_BYTES = 2**30
"""More than any image has that can be decoded: Pillow accepts 89 million pixels."""
SPLITS: tuple[Split, ...] = ("train", "query", "gallery")
JUNK_PID = -1
"""The identity of junk images in the gallery, which count neither as a match nor as an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LazyImage:
    """An image that is stored inside another file and encoded only when it is read."""

    file: Path
    encoded: Callable[[], bytes]
    """Returns the image, losslessly encoded. Raises OSError if the file cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image of one person.

    `image_id` is the image's path relative to the root of the data set, with forward slashes. It is
    unique within its domain. Identities are local to their domain: the same pid in two domains
    means two different people.
    """

    domain: str
    image_id: str
    split: Split
    pid: int
    camid: int | None
    source: Path | bytes | LazyImage
    """The path of the encoded image, its bytes, or a lazily encoded image."""
    boxes: Mapping[str, Box | None] | None = None
    """Exact boxes of the body parts, if the data set has them; None for a part that is out of
    sight."""
    caption: str | None = None

    def read(self) -> bytes:
        """The encoded image. Raises OSError if it cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        if isinstance(self.source, Path):
            return encoded_file(self.source)
        return self.source.encoded()


def encoded_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises OSError if it cannot be read, or if it is too large for an image that could be decoded.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise OSError(
            errno.EFBIG, f"{size / 2**30:.1f} GiB are too many for an image: damaged?", str(path)
        )
    # Files of the kernel seem to be empty, and reading some of them never ends.
    return path.read_bytes() if size else b""


def first_per_camera(pids: Sequence[int], camids: Sequence[int | None]) -> list[bool]:
    """Whether each image is the first of its person in its camera; never True for junk."""
    seen: set[tuple[int, int | None]] = set()
    first = []
    for key in zip(pids, camids, strict=True):
        first.append(key not in seen and key[0] >= 0)
        seen.add(key)
    return first
