"""Decoded images are cached once for all processes, and cached images are never wrong."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from muva.data.decoded import DecodedImages, decoded_images
from muva.errors import MuvaError

SIZE = {"height": 8, "width": 4}
IMAGE_BYTES = 8 * 4 * 3


def image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 4, 3), np.uint8)


def opened(
    folder: Path, *, count: int = 50, content: str = "x", limit: int = 10**6
) -> DecodedImages:
    return decoded_images([content], count=count, limit_bytes=limit, folder=folder, **SIZE)


def test_what_one_process_writes_all_others_read(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    assert second.read(7) is None
    first.write(7, image(7))
    for reader in (second, pickle.loads(pickle.dumps(first)), opened(tmp_path)):
        np.testing.assert_array_equal(reader.read(7), image(7))
        assert reader.read(6) is None
    assert opened(tmp_path, content="of other images").read(7) is None


def write_all(images: DecodedImages) -> None:
    for index in range(len(images)):
        images.write(index, image(index))


def test_concurrent_writers_of_the_same_image_do_not_interfere(tmp_path: Path) -> None:
    images = opened(tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_all, args=(images,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers) or seen == 0:
        for index in range(len(images)):
            found = images.read(index)
            if found is not None:
                np.testing.assert_array_equal(found, image(index))
                seen += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert all(images.read(index) is not None for index in range(len(images)))


def test_truncated_pixels_are_ignored(tmp_path: Path) -> None:
    images = opened(tmp_path)
    images.write(3, image(3))
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    at = content.index(image(3).tobytes())
    content[at + 50 : at + IMAGE_BYTES] = bytes(IMAGE_BYTES - 50)
    file.write_bytes(content)
    assert opened(tmp_path).read(3) is None


def test_a_node_caches_no_more_than_its_limit(tmp_path: Path) -> None:
    assert len(opened(tmp_path / "few", limit=10 * IMAGE_BYTES)) == 10
    one = 2 * os.statvfs(tmp_path).f_bsize  # a page of checksums, one of pixels
    kept = [opened(tmp_path, content=f"{number}") for number in range(3)]
    for number, images in enumerate(kept):
        images.write(0, image(0))
        os.utime(images.path, (number, number))
    opened(tmp_path, content="new", count=1, limit=IMAGE_BYTES + 2 * one)
    assert [images.path.exists() for images in kept] == [False, True, True]
    np.testing.assert_array_equal(kept[0].read(0), image(0))


def test_a_full_disk_stops_caching_and_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = opened(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for index in range(3):
        images.write(index, image(index))
        assert images.read(index) is None
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_a_folder_that_cannot_be_used_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MuvaError, match="Set TMPDIR to another folder"):
        opened(tmp_path / "file")
