"""Keeps requests from an endpoint that fails, until one of them is answered again.

The circuit is closed as long as requests are answered. After several failures in succession it
opens: requests wait, and one at a time is let through as a probe, after a pause that doubles with
each probe that fails. The first answer closes the circuit. After too many failed probes, all
requests end with an error. (Nygard, "Release It!", ch. 5, describes the pattern.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from muva.errors import MuvaError


@dataclass(frozen=True, kw_only=True)
class BreakerSettings:
    """When a circuit opens, and when it stays open for good."""

    failures: int = 10
    """Failures in succession, without an answer between them, that open the circuit."""
    pause_s: float = 1.0
    """The pause before the first probe, which doubles with every probe that fails."""
    max_pause_s: float = 30.0
    probes: int = 8
    """Failed probes after which an outage is considered permanent: about two minutes."""
    first_probes: int = 5
    """The same for an endpoint that has never answered: about half a minute."""


BREAKER = BreakerSettings()


class EndpointDownError(MuvaError):
    """An endpoint has failed for so long that no more requests are sent to it."""


class CircuitBreaker:
    """The circuit of one endpoint. For a single event loop."""

    def __init__(self, settings: BreakerSettings) -> None:
        self._settings = settings
        self._failures = self._failed_probes = 0
        self._open = self._probe_due = False
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._given_up: EndpointDownError | None = None
        self._pause: asyncio.TimerHandle | None = None
        self.answers = 0
        """The number of requests that were answered so far."""

    async def admit(self) -> bool:
        """Wait until a request may be sent; True makes it a probe, which must be reported.

        Raises EndpointDownError when the outage is considered permanent.
        """
        if self._given_up is not None:
            raise self._given_up
        if not self._open:
            return False
        if self._probe_due:
            self._probe_due = False
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None and turn.result():
                self.abandoned()
            raise

    def succeeded(self) -> None:
        """Report an answer, by a probe or by another request."""
        self.answers += 1
        self._failures = self._failed_probes = 0
        self._open = self._probe_due = False
        if self._pause is not None:
            self._pause.cancel()
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)

    def failed(self, reason: str, *, probe: bool, wait_s: float = 0.0) -> None:
        """Report a failure; `wait_s` is how long the endpoint wants to be left alone."""
        self._failures += 1
        if probe and self._open:
            self._failed_probes += 1
            most = self._settings.probes if self.answers else self._settings.first_probes
            if self._failed_probes >= most:
                self._give_up(reason)
                return
        elif self._open or self._failures < self._settings.failures:
            return
        self._open = True
        pause_s = min(self._settings.max_pause_s, self._settings.pause_s * 2.0**self._failed_probes)
        loop = asyncio.get_running_loop()
        self._pause = loop.call_later(max(pause_s, wait_s), self.abandoned)

    def abandoned(self) -> None:
        """Let another request be the probe: the pause is over, or the probe was cancelled."""
        if not self._open:
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._probe_due = True

    def _give_up(self, reason: str) -> None:
        self._given_up = EndpointDownError(
            f"{self._failures} requests failed in succession, {self._failed_probes} of them after "
            f"a pause; the last one: {reason}"
        )
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(self._given_up)
