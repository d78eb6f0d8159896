"""Decoded images, kept once for all processes of a node in a file that they map into memory.

Beside each image's pixels stands their checksum. So nobody waits for anybody: who finds pixels that
their checksum does not fit, or none, decodes the image, and writes what any other would write.
What was cut off by a crash or a full disk does not fit its checksum either.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muva.errors import MuvaError

NODE_BYTES = 4 * 2**30
"""All decoded images of a node together; the files that were opened longest ago go first."""

_SUFFIX = ".images"
_PRESENT = 1 << 32  # above every checksum, so that a sum of 0 says that there is nothing
_log = logging.getLogger(__name__)


class DecodedImages:
    """`count` images (height, width, 3), uint8, in one file; travels to other processes by name."""

    def __init__(self, path: Path, *, count: int, height: int, width: int):
        self.path, self._count, self._shape = path, count, (height, width, 3)
        self._image_bytes = height * width * 3
        self._first = -(-8 * count // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self._first + count * self._image_bytes
        self._full = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)  # sparse: what is not written takes no room
        except OSError as error:
            raise MuvaError(
                f"{path}: decoded images cannot be kept there: {error.strerror or error}. TMPDIR "
                "chooses another folder; it should be on the node's own disk"
            ) from error
        self._bytes = np.memmap(path, np.uint8, "r", shape=(size,)) if count else np.empty(0)
        self._sums = self._bytes[: 8 * count].view(np.uint64)

    def __len__(self) -> int:
        return self._count

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.path, self._count, *self._shape[:2])

    def read(self, index: int) -> np.ndarray | None:
        """An image, to be read only; None where it must be decoded."""
        found = int(self._sums[index])
        if not found:
            return None
        offset = self._first + index * self._image_bytes
        pixels = self._bytes[offset : offset + self._image_bytes]
        if found != _PRESENT | zlib.crc32(pixels.data):
            return None
        return pixels.reshape(self._shape)

    def write(self, index: int, pixels: np.ndarray) -> None:
        """Keep an image. Where the disk is full no more are kept, which is logged once."""
        if self._full:
            return
        content = np.ascontiguousarray(pixels).data.cast("B")
        total = np.uint64(_PRESENT | zlib.crc32(content))
        # Written, not stored through the map: a full disk is then an error and no signal.
        try:
            _write_all(self._file, content, self._first + index * self._image_bytes)
            _write_all(self._file, total.tobytes(), 8 * index)
        except OSError as error:
            self._full = True
            _log.warning("%s: no more images are kept decoded: %s", self.path, error)


def decoded_images(
    content: Sequence[object],
    *,
    count: int,
    height: int,
    width: int,
    limit_bytes: int = NODE_BYTES,
    folder: Path | None = None,
) -> DecodedImages:
    """The first of `count` images, as many as `limit_bytes` hold, in this node's file for them.

    `content`: all that the pixels depend on. Other files make room where that is needed.
    """
    folder = folder or _folder()
    kept = min(count, limit_bytes // (height * width * 3))
    name = hashlib.sha256(repr((content, kept, height, width)).encode()).hexdigest()[:32]
    path = folder / f"{name}{_SUFFIX}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to another user")
        _evict_oldest(path, limit_bytes - kept * height * width * 3)
    except OSError as error:
        raise MuvaError(
            f"{folder}: decoded images cannot be kept there: {error}. TMPDIR chooses another folder"
        ) from error
    images = DecodedImages(path, count=kept, height=height, width=width)
    os.utime(path)
    return images


def delete_decoded_images(folder: Path | None = None) -> None:
    """Removes all decoded images of this node; who trains on them keeps them until the end."""
    for file in (folder or _folder()).glob(f"*{_SUFFIX}"):
        file.unlink(missing_ok=True)


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"muva-{os.getuid()}"


def _reopen(path: Path, count: int, height: int, width: int) -> DecodedImages:
    return DecodedImages(path, count=count, height=height, width=width)


def _evict_oldest(kept: Path, budget_bytes: int) -> None:
    """Removes the files opened longest ago until the others take no more than this.

    Who still has one of them open keeps it until the end.
    """
    others: list[tuple[float, int, Path]] = []
    for file in kept.parent.glob(f"*{_SUFFIX}"):
        if file != kept:
            try:
                status = file.stat()
            except FileNotFoundError:  # another process made room
                continue
            others.append((status.st_mtime, 512 * status.st_blocks, file))
    for _, size, file in sorted(others, reverse=True):
        budget_bytes -= size
        if budget_bytes < 0:
            file.unlink(missing_ok=True)


def _write_all(file: int, content: bytes | memoryview, offset: int) -> None:
    view = memoryview(content)
    while view:
        done = os.pwrite(file, view, offset)
        view, offset = view[done:], offset + done
