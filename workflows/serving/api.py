"""The HTTP API: reads requests within the limits, asks a replica of the model, and answers."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muva.errors import MuvaError
from workflows.serving.access import AccessControl
from workflows.serving.bodies import Body, read_body
from workflows.serving.errors import RequestError, invalid
from workflows.serving.fields import (
    CompareFields,
    ForgetFields,
    NoFields,
    SearchFields,
    check_top,
    fields_of,
    rows_of,
)
from workflows.serving.metrics import Meter
from workflows.serving.openapi import (
    ADD,
    COMPARE,
    DESCRIPTION,
    EMBED,
    FORGET,
    GALLERY,
    MODEL,
    SEARCH,
)
from workflows.serving.page import add_page
from workflows.serving.replicas import Replicas, asked
from workflows.serving.settings import ServeSettings

Metrics = Callable[[], Awaitable[str]]


def build_api(
    replicas: Replicas, settings: ServeSettings, *, meter: Meter, metrics: Metrics
) -> ASGIApp:
    """The API as an ASGI application.

    Args:
        replicas: the replicas of the model.
        settings: the service's settings; of the model, only its limits matter here.
        meter: where requests are counted.
        metrics: the service's metrics as text for Prometheus.
    """
    # FastAPI's own pages of the documentation load scripts from elsewhere.
    app = FastAPI(title="MUVA", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None)
    _add_answers_to_errors(app, meter)
    _add_model(app, replicas, settings)
    _add_gallery(app, replicas, settings)
    _add_operation(app, replicas, metrics)
    add_page(app, replicas, settings)
    _add_token_to_description(app)
    return _Measured(AccessControl(app, settings.access, meter), meter)


def _add_token_to_description(app: FastAPI) -> None:
    described = app.openapi()
    scheme = {"type": "http", "scheme": "bearer"}
    described.setdefault("components", {})["securitySchemes"] = {"token": scheme}


def _add_model(app: FastAPI, replicas: Replicas, settings: ServeSettings) -> None:
    limits = settings.limits

    @app.post("/v1/embed", **EMBED)
    async def embed(request: Request) -> Response:
        body = await read_body(request, limits)
        fields_of(body, NoFields)
        return await answered(replicas, "embed", _images(body))

    @app.post("/v1/compare", **COMPARE)
    async def compare(request: Request) -> Response:
        body = await read_body(request, limits)
        fields = fields_of(body, CompareFields)
        if len(body.images) != 2:
            raise invalid(f"images: expected two to compare, found {len(body.images)}")
        return await answered(replicas, "compare", body.images, fields)

    @app.get("/v1/model", **MODEL)
    async def model() -> Response:
        return await answered(replicas, "describe")


def _add_gallery(app: FastAPI, replicas: Replicas, settings: ServeSettings) -> None:
    limits = settings.limits

    @app.post("/v1/search", **SEARCH)
    async def search(request: Request) -> Response:
        body = await read_body(request, limits)
        fields = fields_of(body, SearchFields)
        check_top(fields, limits)
        return await answered(replicas, "search", _images(body), fields)

    @app.post("/v1/add", **ADD)
    async def add(request: Request) -> Response:
        body = await read_body(request, limits)
        rows = rows_of(body)
        ids = [row.image_id for row in rows]
        if len(set(ids)) < len(ids):
            raise invalid("image_id: expected each image once in a request")
        return await answered(replicas, "add", _images(body), rows)

    @app.post("/v1/forget", **FORGET)
    async def forget(request: Request) -> Response:
        body = await read_body(request, limits)
        fields = fields_of(body, ForgetFields)
        if body.images or not (fields.pids or fields.image_ids):
            raise invalid("expected pids or image_ids, and no images")
        return await answered(replicas, "forget", fields)

    @app.get("/v1/gallery", **GALLERY)
    async def gallery() -> Response:
        described = (await asked(replicas, "describe"))["gallery"]
        if described is None:
            raise RequestError(404, "no_gallery", "this service has no gallery")
        return JSONResponse(described)

    @app.get("/v1/gallery/image", response_class=Response)
    async def picture(id: str) -> Response:
        found = await replicas.call("picture", id)
        if found is None:
            raise RequestError(404, "no_picture", "there is no picture of this image")
        return Response(found, media_type="image/jpeg")


def _add_operation(app: FastAPI, replicas: Replicas, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 if a replica of the model answers, and nothing about it; needs no token."""
        await asked(replicas, "describe")
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def counted() -> Response:
        """Metrics of all replicas, for Prometheus."""
        return PlainTextResponse(await metrics(), media_type="text/plain; version=0.0.4")


def _images(body: Body) -> list[bytes]:
    if not body.images:
        raise invalid("images: expected at least one, found none")
    return body.images


async def answered(replicas: Replicas, operation: str, *given: Any) -> Response:
    """The answer of a replica as a response."""
    return JSONResponse(dict(await asked(replicas, operation, *given)))


def _add_answers_to_errors(app: FastAPI, meter: Meter) -> None:
    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):  # an unknown path or method
            error = RequestError(error.status_code, "not_found", str(error.detail))
        elif not isinstance(error, RequestError):  # FastAPI's, about the query of an address
            error = invalid("expected the id of an image in the address, ?id=IMAGE_ID")
        meter.rejected(reason=error.code)
        headers = {"retry-after": "1"} if error.status == 503 else None
        return JSONResponse(error.as_json(), error.status, headers=headers)

    async def failed(_: Request, error: Exception) -> Response:
        said = RequestError(500, "internal", "the service failed; its operator has the log")
        return JSONResponse(said.as_json(), 500)

    for kind in (RequestError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(Exception, failed)


class _Measured:
    """Counts all responses, and logs what went wrong where the response is 500.

    Starlette sends that response and raises again, for the server to log the error with its
    message. It is logged here by its class alone: a message may quote a request.
    """

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if status != 500:  # a response that has begun cannot become another one
                raise
            _log_bug(error)
        finally:
            route = scope.get("route")
            self._meter.answered(
                endpoint=getattr(route, "path", "other"),
                status=status,
                seconds=time.perf_counter() - started_at,
            )


def _log_bug(error: Exception) -> None:
    frames = traceback.extract_tb(error.__traceback__)
    where = " > ".join(f"{frame.filename}:{frame.lineno}" for frame in frames[-6:])
    known = f": {error}" if isinstance(error, MuvaError) else ""
    logging.getLogger("ray.serve").error("%s%s at %s", type(error).__name__, known, where)
