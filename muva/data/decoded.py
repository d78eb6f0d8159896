"""A cache of decoded images, shared by all processes of a node in a memory-mapped file.

Each image is stored with a checksum of its pixels, so no locks are needed: a process that finds no
image, or one whose checksum does not match, decodes the image itself and writes the same bytes that
any other process would write. An image that was cut short by a crash or a full disk fails its
checksum in the same way.
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
"""Limit for all cached images of a node; the least recently opened files are evicted first."""

_SUFFIX = ".images"
_PRESENT = 1 << 32  # set above the 32-bit checksum, so that 0 means that no image is cached
_log = logging.getLogger(__name__)


class DecodedImages:
    """A cache of `count` uint8 images (height, width, 3) in one file. Pickled by its path."""

    def __init__(self, path: Path, *, count: int, height: int, width: int):
        self.path, self._count, self._shape = path, count, (height, width, 3)
        self._image_bytes = height * width * 3
        self._first = -(-8 * count // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self._first + count * self._image_bytes
        self._full = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(self._file).st_size < size:
                os.ftruncate(self._file, size)  # sparse: unwritten parts take no space
        except OSError as error:
            raise MuvaError(
                f"{path}: decoded images cannot be cached here: {error.strerror or error}. Set "
                "TMPDIR to another folder on the node's own disk"
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
        """The image as a read-only view, or None if it has to be decoded."""
        found = int(self._sums[index])
        if not found:
            return None
        offset = self._first + index * self._image_bytes
        pixels = self._bytes[offset : offset + self._image_bytes]
        if found != _PRESENT | zlib.crc32(pixels.data):
            return None
        return pixels.reshape(self._shape)

    def write(self, index: int, pixels: np.ndarray) -> None:
        """Cache an image. Once the disk is full nothing more is cached; this is logged once."""
        if self._full:
            return
        content = np.ascontiguousarray(pixels).data.cast("B")
        total = np.uint64(_PRESENT | zlib.crc32(content))
        # Use pwrite, not the memory map: a full disk then raises an error instead of SIGBUS.
        try:
            _write_all(self._file, content, self._first + index * self._image_bytes)
            _write_all(self._file, total.tobytes(), 8 * index)
        except OSError as error:
            self._full = True
            _log.warning("%s: no more decoded images are cached: %s", self.path, error)


def decoded_images(
    content: Sequence[object],
    *,
    count: int,
    height: int,
    width: int,
    limit_bytes: int = NODE_BYTES,
    folder: Path | None = None,
) -> DecodedImages:
    """The cache for the first of `count` images, as many as fit into `limit_bytes`.

    `content` is everything that the pixels depend on; it names the file. Older files in the folder
    are evicted if the space is needed.
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
            f"{folder}: decoded images cannot be cached here: {error}. Set TMPDIR to another folder"
        ) from error
    images = DecodedImages(path, count=kept, height=height, width=width)
    os.utime(path)
    return images


def delete_decoded_images(folder: Path | None = None) -> None:
    """Delete all decoded images of this node.

    Processes that have a file open keep it until they end.
    """
    for file in (folder or _folder()).glob(f"*{_SUFFIX}"):
        file.unlink(missing_ok=True)


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"muva-{os.getuid()}"


def _reopen(path: Path, count: int, height: int, width: int) -> DecodedImages:
    return DecodedImages(path, count=count, height=height, width=width)


def _evict_oldest(kept: Path, budget_bytes: int) -> None:
    """Delete the least recently opened files until the others fit into `budget_bytes`.

    Processes that have one of them open keep it until they end.
    """
    others: list[tuple[float, int, Path]] = []
    for file in kept.parent.glob(f"*{_SUFFIX}"):
        if file != kept:
            try:
                status = file.stat()
            except FileNotFoundError:  # evicted by another process
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
