"""An MLLM behind an OpenAI-compatible endpoint (vLLM and similar servers).

`MUVA_EXPERT_URL` is the address (`http://HOST:8000/v1`) and `MUVA_EXPERT_TOKEN` the token, if one
is required. Both are environment variables because they belong to the deployment and may be secret.
The checkpoint is the name of the served model; the revision is whatever identifies its version.
"""

from __future__ import annotations

import base64
import io
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, get_args

from muva.errors import MuvaError
from muva.grounding.answers import boxes_in_text, largest_box
from muva.grounding.expert import QUESTION, Grounding, GroundingImage, RefusedImageError
from muva.proxies import carries_in_clear

URL_VARIABLE = "MUVA_EXPERT_URL"
TOKEN_VARIABLE = "MUVA_EXPERT_TOKEN"
Coordinates = Literal["fractions", "thousandths", "pixels"]
"""Units of a served model's answers: thousandths for CogVLM (its zero-padded `[[x0,y0,x1,y1]]`) and
Qwen3-VL, pixels of the image as it was sent for others."""

REJECTING_STATUSES = (400, 413, 415, 422)
"""Status codes for an image that the endpoint refuses: too large, too small, or filtered."""
MAX_REASON_CHARS = 200
"""How much of the endpoint's reason is reported."""

MAX_RETRIES = 6
BACKOFF_S = 0.5
TIMEOUT_S = 120.0
MAX_NEW_TOKENS = 128
MAX_CONCURRENT_REQUESTS = 8


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the model is served, from the driver's environment: that of an actor may differ."""

    url: str = field(repr=False)
    token: str = field(repr=False)

    @classmethod
    def from_environment(cls) -> Endpoint:
        """The current values of the two variables; empty if not set."""
        url = os.environ.get(URL_VARIABLE, "").rstrip("/")
        return cls(url=url, token=os.environ.get(TOKEN_VARIABLE, ""))

    @property
    def redacted_url(self) -> str:
        """The address without a password."""
        return re.sub(r"//[^/]*@", "//***@", self.url)

    def redact(self, text: str) -> str:
        """The text without secrets."""
        text = text.replace(self.url, self.redacted_url) if self.url else text
        return text.replace(self.token, "***") if self.token else text


class HttpExpert:
    """Sends every phrase for every image; requests that are throttled or fail are retried."""

    def __init__(
        self,
        model: str,
        endpoint: Endpoint,
        *,
        coordinates: Coordinates = "thousandths",
        requests_per_second: float | None = None,
    ) -> None:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util.retry import Retry

        if not endpoint.url.startswith(("http://", "https://")):
            raise MuvaError(
                f"expert http: {URL_VARIABLE} is {endpoint.redacted_url or 'not set'!r}; expected "
                "the endpoint's address, for example http://127.0.0.1:8000/v1"
            )
        if coordinates not in get_args(Coordinates):
            raise MuvaError(
                f"expert http: coordinates {coordinates!r}; expected one of "
                f"{', '.join(get_args(Coordinates))}"
            )
        self._coordinates: Coordinates = coordinates
        self._model, self._endpoint = model, endpoint
        self._rate_limiter = _RateLimiter(requests_per_second)
        self._session = requests.Session()
        retry = Retry(
            total=MAX_RETRIES,
            backoff_factor=BACKOFF_S,
            status_forcelist=(408, 429, 500, 502, 503, 504),
            allowed_methods=None,
            respect_retry_after_header=True,
        )
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=MAX_CONCURRENT_REQUESTS)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        if endpoint.token:
            # Without https, a proxy from the environment could read the token.
            self._session.trust_env = not carries_in_clear(endpoint.url)
            self._session.headers["Authorization"] = f"Bearer {endpoint.token}"

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. Raises RefusedImageError if the endpoint refuses an image.

        Raises MuvaError if the endpoint does not respond or denies access.
        """
        requests_to_send = [(image, phrase) for image in images for phrase in phrases.values()]
        with ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS) as pool:
            groundings = list(pool.map(lambda pair: self._answer(*pair), requests_to_send))
        return [groundings[i : i + len(phrases)] for i in range(0, len(groundings), len(phrases))]

    def _answer(self, image: GroundingImage, phrase: str) -> Grounding:
        import requests

        self._rate_limiter.wait()
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image)}},
            {"type": "text", "text": QUESTION.format(phrase=phrase)},
        ]
        try:
            answer = self._session.post(
                f"{self._endpoint.url}/chat/completions",
                json={
                    "model": self._model,
                    "messages": [{"role": "user", "content": content}],
                    "temperature": 0,
                    "max_tokens": MAX_NEW_TOKENS,
                },
                timeout=TIMEOUT_S,
            )
            if answer.status_code in REJECTING_STATUSES:
                body = self._endpoint.redact(" ".join(answer.text.split()))[:MAX_REASON_CHARS]
                raise RefusedImageError(f"refused by the endpoint: {answer.status_code} {body}")
            answer.raise_for_status()
            text = answer.json()["choices"][0]["message"]["content"]
        except requests.RequestException as error:
            raise MuvaError(
                f"expert http: {self._model} at {self._endpoint.redacted_url} does not answer "
                f"({type(error).__name__}: {self._endpoint.redact(str(error))}). Is it running, is "
                f"{TOKEN_VARIABLE} correct, and is the model served under this name?"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise MuvaError(
                f"expert http: {self._endpoint.redacted_url} sent an unexpected response "
                f"({error!r}). Expected an OpenAI-compatible chat endpoint"
            ) from error
        return grounding(text or "", self._coordinates, image.image.size)


def grounding(text: str, coordinates: Coordinates, size: tuple[int, int]) -> Grounding:
    """Parse an answer in units of `coordinates`; `size` is the image's (width, height)."""
    unit = {"fractions": (1, 1), "thousandths": (1000, 1000), "pixels": size}[coordinates]
    boxes = [
        (x0 / unit[0], y0 / unit[1], x1 / unit[0], y1 / unit[1])
        for x0, y0, x1, y1 in boxes_in_text(text)
    ]
    return Grounding(box=largest_box(boxes), answer=text)


class _RateLimiter:
    """Limits calls per second across all threads."""

    def __init__(self, per_second: float | None) -> None:
        self._gap_s = 1 / per_second if per_second else 0.0
        self._next_at = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Block until the caller may proceed."""
        if not self._gap_s:
            return
        with self._lock:
            turn = max(self._next_at, time.monotonic())
            self._next_at = turn + self._gap_s
        time.sleep(max(0.0, turn - time.monotonic()))


def _data_url(image: GroundingImage) -> str:
    buffer = io.BytesIO()
    image.image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
