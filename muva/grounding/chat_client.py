"""Sends chat requests to an OpenAI-compatible endpoint, as many at once as its settings say.

A request that fails is repeated after a pause with jitter, which is the one that the endpoint asks
for if it does (`Retry-After`, RFC 9110 10.2.3). Three kinds of failures are kept apart: those of an
endpoint that is busy (429, 503), whatever the image; those at everything, which open the circuit
breaker; and those at a single image while others are answered, which refuse that image.
"""

from __future__ import annotations

import asyncio
import email.utils
import io
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from muva.errors import MuvaError
from muva.grounding.circuit_breaker import BreakerSettings, CircuitBreaker, EndpointDownError
from muva.grounding.expert import RefusedImageError
from muva.proxies import carries_in_clear, proxy_for

if TYPE_CHECKING:
    from muva.grounding.experts.http import Endpoint

REJECTING_STATUSES = (400, 413, 415, 422)
"""Status codes for an image that the endpoint refuses: too large, too small, or filtered."""
BUSY_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
MAX_REASON_CHARS = 200
"""How much of the endpoint's reason is reported."""
MAX_ANSWER_BYTES = 2**20
LARGE_BODY_BYTES = 2**20
"""From here on, aiohttp sends a body in pieces, so that the event loop is not blocked."""


@dataclass(frozen=True, kw_only=True)
class RetrySettings:
    """How long an answer may take, and how often and how late a request is repeated."""

    retries: int = 6
    backoff_s: float = 0.5
    """The longest pause before the first repetition; it doubles with each failure."""
    max_backoff_s: float = 30.0
    timeout_s: float = 120.0
    """For one answer, its way to the endpoint and back included."""
    connect_timeout_s: float = 10.0
    deadline_s: float = 600.0
    """For a request and all of its repetitions."""


RETRY = RetrySettings()


class ChatClient:
    """The requests of one process to one endpoint. For a single event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        requests_in_flight: int,
        requests_per_second: float | None,
        retry: RetrySettings,
        breaker: BreakerSettings,
    ) -> None:
        self._endpoint, self._model, self._retry = endpoint, model, retry
        self._slots = asyncio.Semaphore(requests_in_flight)
        self._breaker = CircuitBreaker(breaker)
        self._gap_s = 1 / requests_per_second if requests_per_second else 0.0
        self._next_at = 0.0
        self._random = random.Random()
        # Without https, a proxy from the environment could read the token.
        hidden = bool(endpoint.token) and carries_in_clear(endpoint.url)
        self._proxy, self._proxy_auth = _proxy(None if hidden else proxy_for(endpoint.url))
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def answer(self, body: bytes) -> str:
        """The model's answer to the chat request in `body`, which is JSON.

        Raises RefusedImageError if the endpoint refuses the request, or fails at it while it
        answers others; MuvaError if it does not respond or denies access.
        """
        started_at: float | None = None
        attempts = failures = answers_before = 0
        while True:
            failure = None
            async with self._slots:
                if started_at is None:
                    started_at, answers_before = time.monotonic(), self._breaker.answers
                probe = await self._admitted()
                reported = False
                try:
                    await self._rate_limit()
                    text = await self._attempt(body)
                    self._breaker.succeeded()
                    return text
                except RefusedImageError:
                    self._breaker.succeeded()
                    raise
                except _AttemptError as error:
                    failure = error
                    reported = True
                    self._breaker.failed(
                        error.reason, probe=probe, wait_s=error.retry_after_s or 0.0
                    )
                finally:
                    if probe and not reported:
                        self._breaker.abandoned()
            attempts, failures = attempts + 1, failures + (not failure.busy)
            delay_s = retry_delay_s(
                attempts, failure.retry_after_s, self._random, settings=self._retry
            )
            late = time.monotonic() + delay_s - started_at > self._retry.deadline_s
            if failures > self._retry.retries or late:
                if self._breaker.answers == answers_before:
                    raise self._unanswered(failure.reason)
                if failure.busy:
                    raise self._too_busy(failure.reason)
                raise RefusedImageError(
                    f"the endpoint failed {failures} times at this image while it answered "
                    f"others; the last time: {failure.reason}"
                )
            await asyncio.sleep(delay_s)

    async def _admitted(self) -> bool:
        try:
            return await self._breaker.admit()
        except EndpointDownError as error:
            raise self._unanswered(str(error)) from error

    async def _rate_limit(self) -> None:
        """Wait for the turn of this request, if requests per second are limited."""
        if not self._gap_s:
            return
        turn = max(self._next_at, time.monotonic())
        self._next_at = turn + self._gap_s
        await asyncio.sleep(turn - time.monotonic())

    async def _attempt(self, body: bytes) -> str:
        """Send the request once. Raises _AttemptError where another attempt may succeed."""
        data = body if len(body) < LARGE_BODY_BYTES else io.BytesIO(body)
        session = self._session or self._open_session()
        try:
            async with session.post(f"{self._endpoint.url}/chat/completions", data=data) as answer:
                content = await _limited(answer)
                status, headers = answer.status, answer.headers
        except TimeoutError as error:
            raise _AttemptError(f"no answer within {self._retry.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _AttemptError(
                self._endpoint.redact(f"{type(error).__name__}: {error}")
            ) from error
        if status == HTTPStatus.OK:
            return _text(content)
        words = content.decode("utf-8", "replace").split()
        reason = self._endpoint.redact(f"{status} {' '.join(words)}")[:MAX_REASON_CHARS].strip()
        if status in REJECTING_STATUSES:
            raise RefusedImageError(f"refused by the endpoint: {reason}")
        if status in BUSY_STATUSES:
            raise _AttemptError(reason, busy=True, retry_after_s=retry_after_s(headers))
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
            raise _AttemptError(reason, retry_after_s=retry_after_s(headers))
        raise self._unanswered(reason)

    def _open_session(self) -> aiohttp.ClientSession:
        headers = {"Content-Type": "application/json"}
        if self._endpoint.token and URL(self._endpoint.url).user is None:
            headers["Authorization"] = f"Bearer {self._endpoint.token}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            proxy=self._proxy,
            proxy_auth=self._proxy_auth,
            timeout=aiohttp.ClientTimeout(
                total=self._retry.timeout_s, sock_connect=self._retry.connect_timeout_s
            ),
        )
        return self._session

    def _unanswered(self, reason: str) -> MuvaError:
        from muva.grounding.experts.http import TOKEN_VARIABLE

        return MuvaError(
            f"expert http: {self._model} at {self._endpoint.redacted_url} does not answer "
            f"({reason}). Is it running, is {TOKEN_VARIABLE} correct, and is the model served "
            "under this name?"
        )

    def _too_busy(self, reason: str) -> MuvaError:
        return MuvaError(
            f"expert http: {self._model} at {self._endpoint.redacted_url} was busy for "
            f"{self._retry.deadline_s:g} s ({reason}). Send fewer requests, with --set "
            "grounding.requests_in_flight=N, grounding.requests_per_second=N or fewer --actors"
        )


class _AttemptError(Exception):
    """An attempt that failed, and may succeed when it is repeated."""

    def __init__(
        self, reason: str, *, busy: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.busy, self.retry_after_s = reason, busy, retry_after_s


def retry_delay_s(
    attempts: int,
    retry_after_s: float | None,
    source: random.Random,
    *,
    settings: RetrySettings,
) -> float:
    """The pause before the next attempt, drawn so that requests which failed together spread out.

    It is never shorter than what the endpoint asked for.
    """
    backoff_s = min(settings.max_backoff_s, settings.backoff_s * 2.0 ** (attempts - 1))
    if retry_after_s is None:
        return backoff_s * source.uniform(0.5, 1)
    return retry_after_s + backoff_s * source.random()


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that an answer's `Retry-After` asks to wait: a number, or until a date."""
    value = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _proxy(address: str | None) -> tuple[URL | None, aiohttp.BasicAuth | None]:
    """A proxy's address without the name and password in it, and these."""
    if address is None:
        return None, None
    url = URL(address if "://" in address else f"http://{address}")
    if url.scheme not in ("http", "https"):
        raise MuvaError(
            f"expert http: the environment names a proxy of the kind {url.scheme}; expected one of "
            "the kind http, or none for the endpoint's host (no_proxy)"
        )
    if url.user is None:
        return url, None
    return url.with_user(None), aiohttp.BasicAuth(url.user, url.password or "")


async def _limited(answer: aiohttp.ClientResponse) -> bytes:
    """The body of an answer, which may be of any length where the endpoint is not a chat's."""
    content = bytearray()
    async for piece in answer.content.iter_any():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise _AttemptError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _text(content: bytes) -> str:
    """What the model answered, which may be nothing."""
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError(f"content is {type(text).__name__}")
    except (ValueError, LookupError, TypeError) as error:
        raise _AttemptError(
            f"an unexpected response ({error!r}); expected an OpenAI-compatible chat endpoint"
        ) from error
    return text or ""
