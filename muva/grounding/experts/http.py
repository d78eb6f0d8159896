"""An MLLM behind an OpenAI-compatible endpoint (vLLM, SGLang, hosted models).

`MUVA_EXPERT_URL` is the address (`http://HOST:8000/v1`) and `MUVA_EXPERT_TOKEN` the token, if one
is required. Both are environment variables because they belong to the deployment and may be secret.
The checkpoint is the name of the served model; the revision is whatever identifies its version.

One thread holds an event loop with all requests; the threads that call the expert decode and encode
images. An image is encoded once for all of its phrases. Its first phrase is sent alone and the
others once it is answered: the server then has the image's tokens in its prefix cache.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import threading
import uuid
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, get_args

from muva.data.images import UnreadableImageError
from muva.errors import MuvaError
from muva.grounding.answers import boxes_in_text, largest_box
from muva.grounding.expert import QUESTION, Grounding, GroundingImage, Outcome, RefusedImageError

if TYPE_CHECKING:
    from muva.grounding.chat_client import ChatClient

URL_VARIABLE = "MUVA_EXPERT_URL"
TOKEN_VARIABLE = "MUVA_EXPERT_TOKEN"
Coordinates = Literal["fractions", "thousandths", "pixels"]
"""Units of a served model's answers: thousandths for CogVLM (its zero-padded `[[x0,y0,x1,y1]]`) and
Qwen3-VL, pixels of the image as it was sent for others."""

MAX_NEW_TOKENS = 128
REQUESTS_IN_FLIGHT = 32
IMAGES_PER_REQUEST = 1.5
"""Open images for each request in flight: those that wait for a place, so that none stays free, and
those whose request is repeated after a pause."""
PNG_LEVEL = 1
"""zlib's fastest: a third of the default's time for a file that is a tenth larger."""


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
        requests_in_flight: int = REQUESTS_IN_FLIGHT,
        requests_per_second: float | None = None,
    ) -> None:
        from muva.grounding import chat_client, circuit_breaker

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
        self._model = model
        self._client = chat_client.ChatClient(
            endpoint,
            model,
            requests_in_flight=requests_in_flight,
            requests_per_second=requests_per_second,
            retry=chat_client.RETRY,
            breaker=circuit_breaker.BREAKER,
        )
        self._sending = threading.Lock()
        self._room = threading.Semaphore(1 + int(IMAGES_PER_REQUEST * requests_in_flight))
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=_run, args=(self._loop,), name="requests to an expert", daemon=True
        ).start()
        weakref.finalize(self, _shut_down, self._loop, self._client)

    def ground(
        self, images: Sequence[GroundingImage], phrases: Mapping[str, str]
    ) -> list[list[Grounding]]:
        """See `Expert`. Raises RefusedImageError if the endpoint refuses an image.

        Raises MuvaError if the endpoint does not respond or denies access.
        """
        answers: dict[int, list[Grounding]] = {}
        for position, outcome in self.stream(images, phrases):
            if isinstance(outcome, Exception):
                raise outcome
            answers[position] = outcome
        return [answers[position] for position in range(len(images))]

    def stream(
        self, images: Iterable[GroundingImage], phrases: Mapping[str, str]
    ) -> Generator[tuple[int, Outcome]]:
        """See `StreamingExpert`."""
        parts = [self._around_image(phrase) for phrase in phrases.values()]
        arrived: SimpleQueue[tuple[int, Future[list[Grounding]]]] = SimpleQueue()
        open_: dict[int, Future[list[Grounding]]] = {}

        def send(position: int, encoded: bytes, size: tuple[int, int]) -> None:
            work = self._answers(encoded, size, parts)
            future = open_[position] = asyncio.run_coroutine_threadsafe(work, self._loop)
            future.add_done_callback(lambda done: arrived.put((position, done)))
            future.add_done_callback(lambda _: self._room.release())

        def next_outcome() -> tuple[int, Outcome]:
            position, done = arrived.get()
            del open_[position]
            error = done.exception()
            if error is None:
                return position, done.result()
            if not isinstance(error, Exception) or _of_endpoint(error):
                raise error
            return position, error

        try:
            with self._sending:
                for position, image in enumerate(images):
                    self._room.acquire()
                    try:
                        encoded, size = _png(image)
                    except Exception as error:  # the outcome of this image
                        self._room.release()
                        yield position, error
                        continue
                    send(position, encoded, size)
                    while not arrived.empty():
                        yield next_outcome()
            while open_:
                yield next_outcome()
        finally:
            for future in list(open_.values()):
                future.cancel()

    def _around_image(self, phrase: str) -> tuple[bytes, bytes]:
        """What stands before and after the image in the request for a phrase.

        The image comes first, so that all requests for it begin with the same tokens.
        """
        image = uuid.uuid4().hex
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": QUESTION.format(phrase=phrase)},
        ]
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": MAX_NEW_TOKENS,
        }
        before, after = json.dumps(request).encode().split(image.encode())
        return before, after

    async def _answers(
        self, encoded: bytes, size: tuple[int, int], parts: Sequence[tuple[bytes, bytes]]
    ) -> list[Grounding]:
        """One answer for each phrase, of which the first is asked for alone."""
        requests = (b"".join((before, encoded, after)) for before, after in parts)
        texts = [await self._client.answer(next(requests))]
        try:
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(self._client.answer(body)) for body in requests]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        texts += [other.result() for other in others]
        return [grounding(text, self._coordinates, size) for text in texts]


def grounding(text: str, coordinates: Coordinates, size: tuple[int, int]) -> Grounding:
    """Parse an answer in units of `coordinates`; `size` is the image's (width, height)."""
    unit = {"fractions": (1, 1), "thousandths": (1000, 1000), "pixels": size}[coordinates]
    boxes = [
        (x0 / unit[0], y0 / unit[1], x1 / unit[0], y1 / unit[1])
        for x0, y0, x1, y1 in boxes_in_text(text)
    ]
    return Grounding(box=largest_box(boxes), answer=text)


def _of_endpoint(error: Exception) -> bool:
    """Whether an error is the endpoint's or a setting's, so that no image is to blame."""
    return isinstance(error, MuvaError) and not isinstance(
        error, RefusedImageError | UnreadableImageError
    )


def _png(image: GroundingImage) -> tuple[bytes, tuple[int, int]]:
    """The image as a PNG in base64, which a server decodes to the same pixels, and its size."""
    buffer = io.BytesIO()
    image.image.save(buffer, "PNG", compress_level=PNG_LEVEL)
    return base64.b64encode(buffer.getbuffer()), image.image.size


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _shut_down(loop: asyncio.AbstractEventLoop, client: ChatClient) -> None:
    """Close the connections and end the loop's thread, from whichever thread this is called."""

    async def close() -> None:
        await client.close()
        loop.stop()

    def start() -> None:
        tasks.append(loop.create_task(close()))

    tasks: list[Any] = []
    loop.call_soon_threadsafe(start)
