"""Pictures become the same RGB pixels in whatever form they arrive."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import muva.data.images as images_module
from muva.data.images import (
    UnreadableImageError,
    as_rgb,
    decode_resized,
    decode_rgb,
    decode_to_show,
    resized,
    resized_rgb,
)
from muva.errors import MuvaError

ORIENTATION = 0x0112
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
"""How stored pixels have to be turned, EXIF 2.3, Sec. 4.6.4."""

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (5, 3), dtype=np.uint16)
ALPHA = np.array([0, 128, 255], np.uint8).repeat(5).reshape(3, 5).T


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=-1)


def palette() -> Image.Image:
    """Colours by number, the first of which are transparent or half transparent."""
    image = Image.fromarray(np.arange(15, dtype=np.uint8).reshape(5, 3), "L").convert("P")
    image.putpalette(COLOURS.reshape(-1).tolist())
    image.info["transparency"] = bytes([0, 128, 255])
    return image


def ink() -> Image.Image:
    return Image.merge("CMYK", [Image.fromarray(255 - COLOURS[..., i]) for i in (0, 1, 2)] + [
        Image.new("L", (3, 5), 0)
    ])  # fmt: skip


PICTURES: dict[str, tuple[str, Image.Image, np.ndarray]] = {
    "colour": ("PNG", Image.fromarray(COLOURS), COLOURS),
    "colour, alpha": ("PNG", Image.fromarray(np.dstack([COLOURS, ALPHA])), COLOURS),
    "grey": ("PNG", Image.fromarray(GREY), grey(GREY)),
    "grey, alpha": ("PNG", Image.fromarray(np.dstack([GREY, ALPHA]), "LA"), grey(GREY)),
    "grey, 16 bits": ("PNG", Image.fromarray(DEEP), grey((DEEP >> 8).astype(np.uint8))),
    "grey, 16 bits, TIFF": ("TIFF", Image.fromarray(DEEP), grey((DEEP >> 8).astype(np.uint8))),
    "black and white": (
        "PNG",
        Image.fromarray(GREY > 127),
        grey(np.where(GREY > 127, 255, 0).astype(np.uint8)),
    ),
    "palette": ("PNG", palette(), COLOURS),
    "CMYK": ("TIFF", ink(), COLOURS),
}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def in_every_form(content: bytes, file: Path) -> dict[str, np.ndarray]:
    """The pixels of the same picture, by the form in which it arrives."""
    file.write_bytes(content)
    with Image.open(file) as closed:
        closed.load()
    forms = {
        "path": file,
        "text": f"{file}",
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "opened": Image.open(file),
        "loaded and closed": closed,
        "decoded": decode_rgb(content),
        "decoded twice": as_rgb(as_rgb(file)),
    }
    return {name: np.asarray(as_rgb(image)) for name, image in forms.items()}


@pytest.mark.parametrize("name", list(PICTURES))
def test_a_picture_of_any_mode_has_the_same_pixels_in_every_form(name: str, tmp_path: Path) -> None:
    form, image, expected = PICTURES[name]
    options = {"transparency": image.info["transparency"]} if image.mode == "P" else {}
    found = in_every_form(encoded(image, form, **options), tmp_path / "picture")
    for way, pixels in found.items():
        np.testing.assert_array_equal(pixels, expected, err_msg=way)


@pytest.mark.parametrize("orientation", list(TURNS))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_picture_is_upright_in_every_form(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    stored = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS), form, **lossless))))
    content = encoded(Image.fromarray(COLOURS), form, exif=exif, **lossless)
    for way, pixels in in_every_form(content, tmp_path / "picture").items():
        np.testing.assert_array_equal(pixels, TURNS[orientation](stored), err_msg=way)


def test_the_callers_image_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(COLOURS), "PNG", exif=exif)))
    as_rgb(image).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), COLOURS)
    assert image.getexif()[ORIENTATION] == 6
    plain = Image.fromarray(COLOURS)
    as_rgb(plain).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(plain), COLOURS)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (COLOURS, COLOURS),
        (np.dstack([COLOURS, ALPHA]), COLOURS),
        (COLOURS[::-1, ::2], COLOURS[::-1, ::2]),
        (GREY, grey(GREY)),
        (GREY[..., None], grey(GREY)),
        (np.dstack([GREY, ALPHA]), grey(GREY)),
        (DEEP, grey((DEEP >> 8).astype(np.uint8))),
        (COLOURS.astype(np.uint16) << 8, COLOURS),
    ],
    ids=["RGB", "RGBA", "strided", "grey", "one channel", "grey, alpha", "16 bits", "RGB, 16 bits"],
)
def test_an_array_becomes_the_pixels_of_its_picture(
    pixels: np.ndarray, expected: np.ndarray
) -> None:
    np.testing.assert_array_equal(np.asarray(as_rgb(pixels)), expected)


@pytest.mark.parametrize(
    ("image", "explanation"),
    [
        (COLOURS / 255, r"an image array of float64 \(5, 3, 3\): expected uint8 \(height, width"),
        (COLOURS[None], r"an image array of uint8 \(1, 5, 3, 3\): expected uint8"),
        (COLOURS.repeat(2, axis=2), r"an image array of uint8 \(5, 3, 6\): expected uint8"),
        (COLOURS[:0], r"an image array of uint8 \(0, 3, 3\): expected uint8"),
        (Image.new("RGB", (0, 5)), r"a PIL image of mode RGB and size \(0, 5\): no pixels"),
        (Image.new("F", (3, 5)), r"a PIL image of mode F .*32 bits per channel"),
        (Image.new("I", (3, 5)), r"a PIL image of mode I .*32 bits per channel"),
        (b"", "an image of 0 bytes: empty file"),
        (None, "an image of type NoneType: expected a path"),
        ("no\0file", "no\0file: embedded null byte"),
    ],
)
def test_what_is_no_picture_is_named(image: object, explanation: str) -> None:
    with pytest.raises(MuvaError, match=explanation):
        as_rgb(image)  # pyright: ignore[reportArgumentType]


def test_a_truncated_picture_is_unreadable_in_every_form(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "JPEG")
    content = content[: len(content) // 2]
    (tmp_path / "half.jpg").write_bytes(content)
    for image in (content, tmp_path / "half.jpg", Image.open(tmp_path / "half.jpg")):
        with pytest.raises(MuvaError, match="damaged or truncated"):
            as_rgb(image)
    with pytest.raises(UnreadableImageError, match="damaged or truncated"):
        decode_rgb(content)


SIZE = {"height": 4, "width": 2, "interpolation": "bilinear"}


def test_resizing_at_once_gives_the_pixels_of_decoding_and_then_resizing(tmp_path: Path) -> None:
    for name, (form, image, _) in PICTURES.items():
        (tmp_path / "picture").write_bytes(encoded(image, form))
        expected = resized(as_rgb(tmp_path / "picture"), **SIZE)
        for found in (
            resized_rgb(tmp_path / "picture", **SIZE),
            decode_resized((tmp_path / "picture").read_bytes(), **SIZE),
        ):
            np.testing.assert_array_equal(found, expected, err_msg=name)


def test_threads_hold_no_more_pixels_than_the_limit_and_a_larger_image_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images_module, "MAX_PIXELS_IN_FLIGHT", 250)
    upright, held, lock = images_module._upright_rgb, [0, 0], threading.Lock()
    most: list[tuple[int, int]] = []
    together = threading.Barrier(2)

    def watched(image: Image.Image) -> Image.Image:
        pixels = image.width * image.height
        with lock:
            held[0] += pixels
            held[1] += 1
            most.append((held[0], held[1]))
        if pixels == 100:
            together.wait(timeout=60)  # two fit, and run at the same time
        rgb = upright(image)
        with lock:
            held[0] -= pixels
            held[1] -= 1
        return rgb

    monkeypatch.setattr(images_module, "_upright_rgb", watched)
    small, large = np.zeros((10, 10, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda image: resized_rgb(image, **SIZE), [small] * 4 + [large] * 2))
    assert max(pixels for pixels, _ in most if pixels < 400) == 200
    assert {count for pixels, count in most if pixels >= 400} == {1}
    assert images_module._pixels_in_flight == 0


def test_a_file_that_is_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "damaged.jpg"
    file.touch()
    os.truncate(file, 3 * 2**30)  # sparse: it takes no space
    with pytest.raises(MuvaError, match=r"damaged\.jpg.*3\.0 GiB are too many for an image"):
        as_rgb(file)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_a_file_of_the_kernel_is_empty(tmp_path: Path) -> None:
    link = tmp_path / "kernel.jpg"
    link.symlink_to("/proc/self/mem")  # reading it fails; reading others never ends
    with pytest.raises(MuvaError, match="empty file"):
        as_rgb(link)


def test_damaged_metadata_is_nothing_to_warn_of(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(file, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(file) as opened:
        opened.getexif()
    program = f"from muva.data.images import as_rgb; as_rgb({str(file)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""


def test_an_image_that_cannot_be_read_gives_its_share_back() -> None:
    with pytest.raises(UnreadableImageError, match="damaged"):
        decode_resized(encoded(PICTURES["colour"][1], "PNG")[:60], **SIZE)
    assert images_module._pixels_in_flight == 0


def test_photos_are_shown_smaller_and_crops_as_they_are() -> None:
    photo = Image.fromarray(np.zeros((1500, 3000, 3), np.uint8))
    assert decode_to_show(encoded(photo, "PNG")).size == (1024, 512)
    crop = decode_to_show(encoded(Image.fromarray(COLOURS), "PNG"))
    np.testing.assert_array_equal(np.asarray(crop), COLOURS)


def test_an_image_of_a_kind_that_pillow_has_not_implemented_is_unreadable() -> None:
    stored = io.BytesIO()
    Image.new("RGB", (4, 8)).save(stored, "DDS")
    encoded = bytearray(stored.getvalue())
    encoded[80:84] = (0).to_bytes(4, "little")  # the flags of the pixel format
    with pytest.raises(UnreadableImageError, match="damaged or truncated: Unknown pixel format"):
        decode_rgb(bytes(encoded))


def test_a_warning_that_is_an_error_names_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    stored = io.BytesIO()
    Image.new("RGB", (5, 6)).save(stored, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImageError, match="too many pixels"):
            decode_rgb(stored.getvalue())
