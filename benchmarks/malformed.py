"""Malformed requests for `benchmarks.serve`: truncated, huge, of wrong types, bombs, attacks.

Each is a name, the bytes of a body and its headers, drawn from a seed: no two are alike.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

JSON, FORM = "application/json", "multipart/form-data; boundary=b"


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """A request that must be refused with a reason."""

    kind: str
    path: str
    content: bytes
    content_type: str
    token: bool = True
    declared: int | None = None
    """A Content-Length that is not true."""


def malformed_requests(count: int, image: bytes, *, seed: int = 0) -> Iterator[Malformed]:
    """So many requests, all kinds in turn."""
    drawn = random.Random(seed)
    kinds = list(KINDS.items())
    for number in range(count):
        kind, make = kinds[number % len(kinds)]
        path, content, content_type = make(drawn, image)
        yield Malformed(
            kind=kind,
            path=path,
            content=content,
            content_type=content_type,
            token=kind != "without a token",
            declared=drawn.randrange(10**9, 10**15) if kind == "declared huge" else None,
        )


Made = tuple[str, bytes, str]
Maker = Callable[[random.Random, bytes], Made]


def in_json(images: list[bytes], **beside: object) -> bytes:
    """A body of images in base64."""
    sent = [{"image": base64.b64encode(one).decode()} for one in images]
    return json.dumps({"images": sent, **beside}).encode()


def in_form(images: list[bytes], *, name: str = "image") -> bytes:
    """A body of images as files."""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'.encode()
    return b"".join(head + one + b"\r\n" for one in images) + b"--b--\r\n"


def _cut(drawn: random.Random, content: bytes, least: int = 1) -> bytes:
    return content[: drawn.randrange(least, len(content) - 1)]


def _truncated_image(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([_cut(drawn, image)]), FORM


def _truncated_second(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_json([image, _cut(drawn, image)]), JSON


def _truncated_json(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", _cut(drawn, in_json([image])), JSON


def _truncated_form(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([image])[: drawn.randrange(1, 60)], FORM


def _huge(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", drawn.randbytes(1000) * 70_000, JSON


def _declared_huge(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", b'{"images": [', JSON


def _large_image(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([image + drawn.randbytes(1000) * 17_000]), FORM


def _many_images(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([image] * drawn.randrange(65, 200)), FORM


def _png_bomb(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([png_bomb(drawn.randrange(6000, 60_000))]), FORM


def _blank_bomb(drawn: random.Random, image: bytes) -> Made:
    """A real image whose pixels take 75 MB and more, in some kilobytes."""
    written = io.BytesIO()
    Image.new("1", (drawn.randrange(5100, 7000), 5000)).save(written, "PNG")
    return "/v1/compare", in_json([written.getvalue(), image]), JSON


def _zipped(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([gzip.compress(bytes(drawn.randrange(10**5, 10**6)))]), FORM


def _noise(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([drawn.randbytes(drawn.randrange(0, 5000))]), FORM


def _noise_as_json(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", drawn.randbytes(drawn.randrange(1, 5000)), JSON


def _deep(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", b'{"images":' + b"[" * drawn.randrange(10**4, 10**5), JSON


def _wrong_type(drawn: random.Random, image: bytes) -> Made:
    value = drawn.choice([3, None, "x", [1], [None], [[]], {"image": 1}, [{"image": 3.5}], True])
    return "/v1/embed", json.dumps({"images": value}).encode(), JSON


def _wrong_field(drawn: random.Random, image: bytes) -> Made:
    value = drawn.choice(["many", -1, 10**30, None, [], {}, 2.5, 10**5])
    name = drawn.choice(["top", "far", "camids", "after", f"x{drawn.randrange(100)}"])
    sent = {"top": 10**6, **({name: value} if name != "top" else {})}
    return "/v1/search", in_json([image], **sent), JSON


def _wrong_content_type(drawn: random.Random, image: bytes) -> Made:
    kinds = ["text/plain", "application/x-python-pickle", "image/jpeg", "application/xml", "a"]
    return "/v1/embed", image, drawn.choice(kinds)


def _pickled(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_form([pickle.dumps({"images": drawn.random()})]), FORM


def _address(drawn: random.Random, image: bytes) -> Made:
    scheme = drawn.choice(["http", "https", "file", "ftp", "s3", "gopher", "data"])
    sent = {"images": [{"image": f"{scheme}://169.254.169.254/{drawn.randrange(100)}"}]}
    return "/v1/embed", json.dumps(sent).encode(), JSON


def _detour(drawn: random.Random, image: bytes) -> Made:
    image_id = "../" * drawn.randrange(1, 9) + "etc/passwd"
    sent = {"images": [{"image": base64.b64encode(image).decode(), "image_id": image_id}]}
    return "/v1/add", json.dumps(sent).encode(), JSON


def _without_a_token(drawn: random.Random, image: bytes) -> Made:
    return "/v1/embed", in_json([image]), JSON


def _no_path(drawn: random.Random, image: bytes) -> Made:
    return f"/v{drawn.randrange(2, 99)}/embed", in_json([image]), JSON


KINDS: dict[str, Maker] = {
    "truncated image": _truncated_image,
    "truncated second image": _truncated_second,
    "truncated JSON": _truncated_json,
    "truncated form": _truncated_form,
    "huge": _huge,
    "declared huge": _declared_huge,
    "large image": _large_image,
    "many images": _many_images,
    "PNG bomb": _png_bomb,
    "blank bomb": _blank_bomb,
    "zip bomb": _zipped,
    "noise": _noise,
    "noise as JSON": _noise_as_json,
    "nested": _deep,
    "wrong type": _wrong_type,
    "wrong field": _wrong_field,
    "wrong content type": _wrong_content_type,
    "pickle": _pickled,
    "address": _address,
    "detour": _detour,
    "without a token": _without_a_token,
    "no such path": _no_path,
}


def png_bomb(side: int) -> bytes:
    """A PNG of a kilobyte that says to have gigabytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(bytes(10**6), 9))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rows + chunk(b"IEND", b"")
