"""A record: one image of one person and what is known about it, before it is read.

Readers (`muva.data.benchmarks`, `muva.synthetic`) yield records; `write_shards` reads, checks
and stores the images. A record opens nothing: its image is a path or encoded bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "query", "gallery"]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the image's width and height; x1 and y1 exclusive."""

SPLITS: tuple[Split, ...] = ("train", "query", "gallery")
JUNK_PID = -1
"""The identity of gallery images that count neither as a match nor as an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LazyImage:
    """An image that is a part of a file."""

    file: Path
    encoded: Callable[[], bytes]
    """Cuts it out when it is wanted, without loss; OSError where that fails."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One image of one person.

    `image_id` is the path relative to the data set's root, with slashes, unique in its domain.
    Identities are counted per domain: the same pid in two domains means two people.
    """

    domain: str
    image_id: str
    split: Split
    pid: int
    camid: int | None
    source: Path | bytes | LazyImage
    """Where the encoded image is, or the encoded image."""
    boxes: Mapping[str, Box | None] | None = None
    """Exact boxes of the parts where the data come with them; None for a part out of sight."""
    caption: str | None = None

    def read(self) -> bytes:
        """The encoded image; OSError where it cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        return self.source.read_bytes() if isinstance(self.source, Path) else self.source.encoded()


def first_per_camera(pids: Sequence[int], camids: Sequence[int | None]) -> list[bool]:
    """Whether each image is the first of its person in its camera; junk (negative) never is."""
    seen: set[tuple[int, int | None]] = set()
    first = []
    for key in zip(pids, camids, strict=True):
        first.append(key not in seen and key[0] >= 0)
        seen.add(key)
    return first
