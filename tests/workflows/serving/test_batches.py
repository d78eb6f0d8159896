"""Batches of a busy model, and of one that fails."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from workflows.serving.batches import Batches


def parts(*sizes: int) -> list[np.ndarray]:
    return [np.full((size, 2), number) for number, size in enumerate(sizes)]


def test_what_arrives_while_the_model_is_busy_is_computed_together() -> None:
    seen: list[list[int]] = []
    busy = threading.Event()

    def compute(batch: list[np.ndarray]) -> list[np.ndarray]:
        seen.append([len(part) for part in batch])
        busy.wait()
        return [part * 10 for part in batch]

    async def ask() -> list[np.ndarray]:
        batches = Batches(compute, size=8, wait_s=0.001)
        first = asyncio.create_task(batches.result(np.zeros((1, 2))))
        while not seen:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batches.result(part)) for part in parts(3, 1, 2, 5, 8, 1)]
        await asyncio.sleep(0.05)  # many times the waiting time
        assert len(seen) == 1
        busy.set()
        await first
        return await asyncio.gather(*others)

    results = asyncio.run(ask())
    assert seen == [[1], [3, 1, 2], [5], [8], [1]]
    for number, (result, part) in enumerate(zip(results, parts(3, 1, 2, 5, 8, 1), strict=True)):
        np.testing.assert_array_equal(result, part * 10, err_msg=str(number))


def test_a_batch_waits_for_others_but_not_longer_than_until_it_is_full() -> None:
    seen: list[int] = []

    def compute(batch: list[np.ndarray]) -> list[np.ndarray]:
        seen.append(len(batch))
        return batch

    async def ask() -> None:
        batches = Batches(compute, size=2, wait_s=60)
        await asyncio.wait_for(asyncio.gather(*map(batches.result, parts(1, 1))), 10)

    asyncio.run(ask())
    assert seen == [2]


def test_a_failed_batch_fails_its_requests_and_no_other() -> None:
    def compute(batch: list[np.ndarray]) -> list[np.ndarray]:
        if batch[0][0, 0] == 0:
            raise ValueError("the first")
        return batch

    async def ask() -> list[object]:
        batches = Batches(compute, size=1, wait_s=0)
        asked = [asyncio.create_task(batches.result(part)) for part in parts(1, 1, 1)]
        asked[1].cancel()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, cancelled, last = asyncio.run(ask())
    assert isinstance(first, ValueError)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert isinstance(last, np.ndarray)
    with pytest.raises(ValueError, match="the first"):
        raise first
