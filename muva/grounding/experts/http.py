"""An MLLM behind an OpenAI-compatible endpoint (vLLM and the like), which a team serves already.

`MUVA_EXPERT_URL` names it (`http://HOST:8000/v1`), `MUVA_EXPERT_TOKEN` its token, if it wants one;
both are variables because they are the deployment's and may be secret. The checkpoint is the name
of the served model, the revision what you know of its state.
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

URL_VARIABLE = "MUVA_EXPERT_URL"
TOKEN_VARIABLE = "MUVA_EXPERT_TOKEN"
Coordinates = Literal["fractions", "thousandths", "pixels"]
"""What a served model counts in: CogVLM (its zero-padded `[[x0,y0,x1,y1]]`) and Qwen3-VL in
thousandths, others in pixels of the image as it was sent."""

REFUSED = (400, 413, 415, 422)
"""What an endpoint answers to an image that it will not look at: too large, too small, filtered."""
TOLD = 200
"""Characters of its reason that are passed on."""

ATTEMPTS = 6
BACKOFF_S = 0.5
ANSWER_S = 120.0
ANSWER_TOKENS = 128
AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the model is served, as the driver's environment says: actors have another one."""

    url: str = field(repr=False)
    token: str = field(repr=False)

    @classmethod
    def of_environment(cls) -> Endpoint:
        """What the two variables say now; empty for one that is not set."""
        url = os.environ.get(URL_VARIABLE, "").rstrip("/")
        return cls(url=url, token=os.environ.get(TOKEN_VARIABLE, ""))

    @property
    def shown(self) -> str:
        """The address without what may be a password."""
        return re.sub(r"//[^/]*@", "//***@", self.url)

    def masked(self, text: str) -> str:
        """The text without the secrets."""
        text = text.replace(self.url, self.shown) if self.url else text
        return text.replace(self.token, "***") if self.token else text


class HttpExpert:
    """Sends each image with each phrase; refused and broken requests are sent again."""

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
                f"expert http: {URL_VARIABLE} is {endpoint.shown or 'not set'!r}; expected the "
                "endpoint's address, for example http://127.0.0.1:8000/v1"
            )
        if coordinates not in get_args(Coordinates):
            raise MuvaError(
                f"expert http: coordinates {coordinates!r}; expected one of "
                f"{', '.join(get_args(Coordinates))}"
            )
        self._coordinates: Coordinates = coordinates
        self._model, self._endpoint = model, endpoint
        self._pace = _Pace(requests_per_second)
        self._session = requests.Session()
        retry = Retry(
            total=ATTEMPTS,
            backoff_factor=BACKOFF_S,
            status_forcelist=(408, 429, 500, 502, 503, 504),
            allowed_methods=None,
            respect_retry_after_header=True,
        )
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=AT_ONCE)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        if endpoint.token:
            self._session.headers["Authorization"] = f"Bearer {endpoint.token}"

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. Raises MuvaError when the endpoint stays silent or refuses us.

        RefusedImageError when it refuses an image.
        """
        asked = [(image, phrase) for image in images for phrase in phrases.values()]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(lambda pair: self._answer(*pair), asked))
        return [found[i : i + len(phrases)] for i in range(0, len(found), len(phrases))]

    def _answer(self, image: GroundingImage, phrase: str) -> Grounding:
        import requests

        self._pace.wait()
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
                    "max_tokens": ANSWER_TOKENS,
                },
                timeout=ANSWER_S,
            )
            if answer.status_code in REFUSED:
                told = self._endpoint.masked(" ".join(answer.text.split()))[:TOLD]
                raise RefusedImageError(f"the endpoint refused it: {answer.status_code} {told}")
            answer.raise_for_status()
            text = answer.json()["choices"][0]["message"]["content"]
        except requests.RequestException as error:
            raise MuvaError(
                f"expert http: {self._model} at {self._endpoint.shown} does not answer "
                f"({type(error).__name__}: {self._endpoint.masked(str(error))}). Is it up, is "
                f"{TOKEN_VARIABLE} right, and is the model served under this name?"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise MuvaError(
                f"expert http: {self._endpoint.shown} answers in another form ({error!r}): "
                "expected that of an OpenAI-compatible chat endpoint"
            ) from error
        return grounding(text or "", self._coordinates, image.image.size)


def grounding(text: str, coordinates: Coordinates, size: tuple[int, int]) -> Grounding:
    """An answer whose numbers count in `coordinates`; `size`: the image's width and height."""
    unit = {"fractions": (1, 1), "thousandths": (1000, 1000), "pixels": size}[coordinates]
    boxes = [
        (x0 / unit[0], y0 / unit[1], x1 / unit[0], y1 / unit[1])
        for x0, y0, x1, y1 in boxes_in_text(text)
    ]
    return Grounding(box=largest_box(boxes), answer=text)


class _Pace:
    """Lets so many pass a second, whatever the number of threads."""

    def __init__(self, per_second: float | None) -> None:
        self._gap_s = 1 / per_second if per_second else 0.0
        self._next_at = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when it is this caller's turn."""
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
