"""The page at `/`: a picture is dropped, and the people of the gallery are ranked.

It keeps no state and no picture: the browser shows the query itself, and each search is a form.
htmx and Pico CSS are in `static`, unchanged from their npm packages; see NOTICE.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from workflows.serving.access import COOKIE
from workflows.serving.bodies import read_body
from workflows.serving.errors import RequestError
from workflows.serving.fields import SearchFields, check_top, fields_of
from workflows.serving.replicas import Replicas, asked
from workflows.serving.settings import ServeSettings
from workflows.serving.token import is_secret, session_key

_FOLDER = Path(__file__).parent
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_LOGIN_BYTES = 2048
_TOPS = (10, 20, 50, 100)


def add_page(app: FastAPI, replicas: Replicas, settings: ServeSettings) -> None:
    """Add the page, its files, and its login to the API."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined
    )
    templates.filters |= {"percent": _percent, "when": _when, "address": _address}
    _add_files(app)
    _add_login(app, templates, settings)

    def shown(name: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(templates.get_template(name).render(values), status)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        described = await asked(replicas, "describe")
        tops = [one for one in _TOPS if one <= settings.limits.top] or [settings.limits.top]
        return shown("page.html", tops=tops, **described)

    @app.post("/page/search", include_in_schema=False)
    async def found(request: Request) -> Response:
        try:
            body = await read_body(request, settings.limits)
            fields = fields_of(body, SearchFields)
            check_top(fields, settings.limits)
            if not body.images:
                return shown("problem.html", 422, message="Choose a picture first.")
            answer = await asked(replicas, "search", body.images, fields)
        except RequestError as error:
            return shown("problem.html", error.status, message=error.message)
        return shown("matches.html", calibrated="threshold" in answer, **answer)


def _add_files(app: FastAPI) -> None:
    """Exactly the files that are there now, from memory: no path is ever looked up on the disk."""
    files = {file.name: file.read_bytes() for file in (_FOLDER / "static").iterdir()}

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise RequestError(404, "not_found", "there is no such file")
        return Response(files[name], media_type=_TYPES[Path(name).suffix])


def _add_login(app: FastAPI, templates: Environment, settings: ServeSettings) -> None:
    login_page = templates.get_template("login.html")

    @app.get("/login", include_in_schema=False)
    async def login() -> Response:
        return HTMLResponse(login_page.render(wrong=False))

    @app.post("/login", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        token = await _given_token(request)
        if not is_secret(token, settings.access.token_sha256):
            return HTMLResponse(login_page.render(wrong=True), 401)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            COOKIE,
            session_key(token),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @app.post("/logout", include_in_schema=False)
    async def log_out() -> Response:
        response = RedirectResponse("/login", 303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


async def _given_token(request: Request) -> str:
    """The token of a form of the login page, `token=TOKEN`; whatever else arrives is no token."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LOGIN_BYTES:
            raise RequestError(413, "too_large", "expected a token")
    found = re.fullmatch(rb"token=([\w.~%+-]*)", content)
    return unquote_plus(found.group(1).decode()) if found else ""


def _percent(share: float) -> str:
    """A probability for people: without digits that mean nothing, and never certain."""
    if share > 0.999:
        return "> 99.9 %"
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _when(time: str) -> str:
    return datetime.fromisoformat(time).strftime("%Y-%m-%d %H:%M UTC")


def _address(image_id: str) -> str:
    return quote(image_id, safe="")
