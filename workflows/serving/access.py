"""Who may call the service: checked for every request, before anything else of it is looked at."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflows.serving.errors import RequestError
from workflows.serving.metrics import Meter
from workflows.serving.settings import Access
from workflows.serving.token import is_secret

COOKIE = "muva-session"
OPEN_PATHS = ("/health", "/login")
STATIC = "/static/"
_SAFE = ("GET", "HEAD")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every response. The page has no script of its own in it, and nothing is kept in caches.

With the stricter policy no-referrer, Chromium 155 sends `Origin: null` with the page's own forms.
"""


class AccessControl:
    """Lets requests through that may be answered, and adds the headers of every response."""

    def __init__(self, app: ASGIApp, access: Access, meter: Meter) -> None:
        self._app = app
        self._access = access
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        try:
            refused = self._refused(scope["path"], scope["method"], headers)
        except RequestError as error:
            self._meter.rejected(reason=error.code)
            challenge = {"www-authenticate": "Bearer"} if error.status == 401 else None
            refused = JSONResponse(error.as_json(), error.status, headers=challenge)
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refused(self, path: str, method: str, headers: Headers) -> Response | None:
        """None if the request may be answered; the way to the login for who opens the page."""
        self._check_host(headers.get("host", ""))
        if path in OPEN_PATHS or path.startswith(STATIC):
            _check_origin(headers, method)
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_secret(token.strip(), self._access.token_sha256):
            return None
        if is_secret(session_of(headers), self._access.session_sha256):
            _check_origin(headers, method)
            return None
        if path == "/" and method in _SAFE:
            return RedirectResponse("/login", 303)
        raise RequestError(
            401, "no_token", "expected the header Authorization: Bearer TOKEN, with the right token"
        )

    def _check_host(self, host: str) -> None:
        """A page of another site whose name was made to lead here has another host name."""
        allowed = self._access.hosts
        if allowed is not None and _without_port(host) not in allowed:
            raise RequestError(
                421, "wrong_host", f"expected the host {' or '.join(allowed)} in the address"
            )


def session_of(headers: Headers) -> str:
    """The value of the page's cookie; empty without one."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def _check_origin(headers: Headers, method: str) -> None:
    """A change that comes with a cookie must come from the page itself, not from another site."""
    if method in _SAFE:
        return
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc == headers.get("host"):
        return
    raise RequestError(403, "other_origin", "expected a request from the page of this service")


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()
