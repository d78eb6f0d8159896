"""The circuit of an endpoint: open after failures, probed one request at a time, closed again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from muva.grounding.circuit_breaker import BreakerSettings, CircuitBreaker, EndpointDownError

FAST = BreakerSettings(failures=3, pause_s=0.05, max_pause_s=0.1, probes=3, first_probes=2)


def in_a_loop(test: Callable[[CircuitBreaker], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(CircuitBreaker(FAST))

    asyncio.run(run())


def test_it_opens_after_failures_in_succession_only() -> None:
    async def run(breaker: CircuitBreaker) -> None:
        for _ in range(5):  # an answer between failures keeps it closed
            for _ in range(FAST.failures - 1):
                breaker.failed("500", probe=await breaker.admit())
            breaker.succeeded()
        for _ in range(FAST.failures):
            assert not await asyncio.wait_for(breaker.admit(), 1)
            breaker.failed("500", probe=False)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(breaker.admit(), FAST.pause_s / 2)

    in_a_loop(run)


def test_one_probe_at_a_time_is_let_through_and_an_answer_admits_all() -> None:
    async def run(breaker: CircuitBreaker) -> None:
        for _ in range(FAST.failures):
            breaker.failed("500", probe=False)
        waiting = [asyncio.create_task(breaker.admit()) for _ in range(8)]
        await asyncio.sleep(3 * FAST.pause_s)
        assert [task.done() for task in waiting] == [True, *[False] * 7]
        assert waiting[0].result(), "it knows that it is a probe"
        breaker.succeeded()
        assert await asyncio.gather(*waiting[1:]) == [False] * 7
        assert not await breaker.admit()

    in_a_loop(run)


def test_the_pause_grows_with_failed_probes_until_it_gives_up() -> None:
    async def run(breaker: CircuitBreaker) -> None:
        breaker.succeeded()
        began_at = time.monotonic()
        for _ in range(FAST.failures):
            breaker.failed("refused", probe=False)
        probed_after_s = []
        waiting = [asyncio.create_task(breaker.admit()) for _ in range(5)]
        await asyncio.sleep(0)
        for _ in range(FAST.probes):
            done, _ = await asyncio.wait(
                [task for task in waiting if not task.done()], return_when="FIRST_COMPLETED"
            )
            assert len(done) == 1
            probed_after_s.append(time.monotonic() - began_at)
            breaker.failed("refused", probe=True)
        for found, least in zip(probed_after_s, (0.05, 0.05 + 0.1, 0.05 + 0.1 + 0.1), strict=True):
            assert least - 0.005 <= found < least + 5
        for task in waiting[FAST.probes :]:
            with pytest.raises(EndpointDownError, match=r"6 requests failed .* one: refused"):
                await task
        with pytest.raises(EndpointDownError):
            await breaker.admit()

    in_a_loop(run)


def test_an_endpoint_that_has_never_answered_is_given_up_sooner() -> None:
    async def run(breaker: CircuitBreaker) -> None:
        for _ in range(FAST.failures):
            breaker.failed("refused", probe=False)
        for _ in range(FAST.first_probes):
            assert await breaker.admit()
            breaker.failed("refused", probe=True)
        with pytest.raises(EndpointDownError):
            await breaker.admit()

    in_a_loop(run)


def test_it_waits_as_long_as_the_endpoint_asks() -> None:
    async def run(breaker: CircuitBreaker) -> None:
        for _ in range(FAST.failures):
            breaker.failed("429", probe=False, wait_s=0.3)
        started_at = time.monotonic()
        assert await breaker.admit()
        assert time.monotonic() - started_at >= 0.29

    in_a_loop(run)


def test_a_probe_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    async def run(breaker: CircuitBreaker) -> None:
        for _ in range(FAST.failures):
            breaker.failed("500", probe=False)
        first, second = (asyncio.create_task(breaker.admit()) for _ in range(2))
        await asyncio.sleep(0)
        breaker.abandoned()  # the pause is over: the first gets its turn in the next iteration
        first.cancel()
        assert await asyncio.wait_for(second, 1)

    in_a_loop(run)
