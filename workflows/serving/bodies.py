"""Bodies of requests: JSON or a form, read within limits and never written to a disk."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from workflows.serving.errors import RequestError, invalid, too_large
from workflows.serving.headers import check_header
from workflows.serving.settings import MEGABYTE, Limits

MAX_FIELDS = 1000
_FIELD_BYTES = 4096
_IMAGE = "image"
_SCHEME = re.compile(r"\s*(?:[a-z][a-z0-9+.-]{1,15}:|[/~\\.])", re.IGNORECASE)
_BASE64_JPEG = "/9j/"


@dataclass(frozen=True, kw_only=True)
class Body:
    """What a request holds."""

    images: list[bytes]
    """Encoded images whose headers are within the limits."""
    fields: dict[str, Any]
    """The other fields. Those of a form are lists of texts."""
    details: list[dict[str, Any]] = field(default_factory=list)
    """In JSON: what stands beside each image."""
    is_form: bool = False


async def read_body(request: Request, limits: Limits) -> Body:
    """The images and fields of a request.

    Raises:
        RequestError: it is malformed, of another type, or exceeds a limit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", "multipart/form-data"):
        raise RequestError(
            415,
            "unsupported_type",
            f"Content-Type {kind[:80]!a}: expected application/json or multipart/form-data",
        )
    declared = request.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,19}", declared) and int(declared) > limits.request_bytes:
        raise _request_too_large(limits)
    try:
        if kind == "application/json":
            content = b"".join([chunk async for chunk in _limited(request, limits)])
            return await asyncio.to_thread(_of_json, content, limits)
        body = await _of_form(request, limits)
        await asyncio.to_thread(_check_images, body.images, limits)
        return body
    except ClientDisconnect as error:
        raise RequestError(400, "incomplete", "the request ended before its body did") from error


async def _limited(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The chunks of a body; a header may declare fewer bytes than arrive, or none."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limits.request_bytes:
            raise _request_too_large(limits)
        yield chunk


def _request_too_large(limits: Limits) -> RequestError:
    return too_large(f"expected a request of at most {limits.request_mb:g} MB")


def _of_json(content: bytes, limits: Limits) -> Body:
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else _shown(error)
        raise RequestError(400, "malformed", f"the body is not JSON: {reason}") from error
    if not isinstance(stored, dict):
        raise invalid(f"expected a JSON object, found {_kind(stored)}")
    given = stored.pop("images", [])
    if not isinstance(given, list):
        raise invalid(f"images: expected a list, found {_kind(given)}")
    _check_count(len(given), limits)
    images, details = [], []
    for number, one in enumerate(given):
        if not isinstance(one, dict):
            raise invalid(
                f'images[{number}]: expected an object such as {{"image": "BASE64"}}, found '
                f"{_kind(one)}"
            )
        images.append(_decoded(one.pop(_IMAGE, None), number))
        details.append(one)
    _check_images(images, limits)
    return Body(images=images, fields=stored, details=details)


def _decoded(text: object, number: int) -> bytes:
    where = f"images[{number}].image"
    if not isinstance(text, str):
        raise invalid(f"{where}: expected an image in base64, found {_kind(text)}")
    if _SCHEME.match(text) and not text.startswith(_BASE64_JPEG):
        raise invalid(
            f"{where}: expected an image in base64, found what looks like an address or a path. "
            "Nothing is fetched or opened for a request: send the content of the image",
            code="not_fetched",
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{where}: this is not base64: {_shown(error)}") from error


class _InMemory(MultiPartParser):
    spool_max_size = 0  # a SpooledTemporaryFile of this size never moves to a disk


async def _of_form(request: Request, limits: Limits) -> Body:
    parser = _InMemory(
        Headers(raw=request.headers.raw),
        _limited(request, limits),
        max_files=limits.images,
        max_fields=MAX_FIELDS,
        max_part_size=_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise too_large(f"expected at most {limits.images} images in a request") from error
        raise RequestError(400, "malformed", f"the form: {error.message}") from error
    images: list[bytes] = []
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name != _IMAGE:
            if isinstance(value, UploadFile):
                raise invalid(f"{name[:80]!a}: expected files in the field image alone")
            fields.setdefault(name, []).append(value)
        elif isinstance(value, UploadFile):
            images.append(value.file.read())
            value.file.close()
        else:
            raise invalid("image: expected a file, found a text. Nothing is fetched for a request")
    _check_count(len(images), limits)
    return Body(images=images, fields=fields, is_form=True)


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.images:
        raise too_large(f"expected at most {limits.images} images in a request, found {count}")


def _check_images(images: list[bytes], limits: Limits) -> None:
    for number, image in enumerate(images):
        if len(image) > limits.image_bytes:
            raise too_large(
                f"images[{number}]: {len(image) / MEGABYTE:.1f} MB, expected at most "
                f"{limits.image_mb:g} MB"
            )
        check_header(image, limits, where=f"images[{number}]")


def _kind(value: object) -> str:
    names: Mapping[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "nothing")


def _shown(error: Exception) -> str:
    """A reason without what the caller sent."""
    return str(error).partition(": ")[0][:120] if isinstance(error, UnicodeError) else str(error)
