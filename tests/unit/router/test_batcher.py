"""Joining single calls into batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.router.batcher import Batcher


class Doubler:
    """Doubles numbers, slowly; refuses batches with a negative number."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = 0
        self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
            await asyncio.sleep(0.01)
        finally:
            self.running -= 1
        if any(item < 0 for item in items):
            raise InvalidRequestError("number: expected at least 0, got less")
        return [2 * item for item in items]


async def test_a_lone_item_goes_at_once() -> None:
    run = Doubler()
    assert await Batcher(run, 8, 1)(3) == 6
    assert run.batches == [[3]]


async def test_items_that_come_together_go_together_and_each_gets_its_own_answer() -> None:
    run = Doubler()
    batcher = Batcher(run, 8, 1)
    assert await asyncio.gather(*(batcher(i) for i in range(5))) == [0, 2, 4, 6, 8]
    assert run.batches == [[0, 1, 2, 3, 4]]


async def test_items_gather_while_calls_are_running_within_both_limits() -> None:
    run = Doubler()
    run.gate.clear()
    batcher = Batcher(run, 4, 2)
    tasks = []
    for i in range(12):
        tasks.append(asyncio.create_task(batcher(i)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert run.batches == [[0], [1]]
    run.gate.set()
    assert await asyncio.gather(*tasks) == [2 * i for i in range(12)]
    assert max(map(len, run.batches)) == 4
    assert run.most_running == 2
    assert sorted(i for batch in run.batches for i in batch) == list(range(12))


async def test_a_bad_item_fails_alone() -> None:
    run = Doubler()
    batcher = Batcher(run, 8, 1)
    results = await asyncio.gather(*(batcher(i) for i in (1, -1, 2)), return_exceptions=True)
    assert [results[0], results[2]] == [2, 4]
    assert isinstance(results[1], InvalidRequestError)


async def test_an_outage_fails_the_batch_and_not_the_next_one() -> None:
    broken = True

    async def run(items: Sequence[int]) -> list[int]:
        if broken:
            raise UnavailableError("down")
        return list(items)

    batcher = Batcher(run, 8, 1)
    results = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError, UnavailableError]
    broken = False
    assert await batcher(3) == 3


async def test_an_item_whose_caller_has_gone_is_not_sent() -> None:
    run = Doubler()
    run.gate.clear()
    batcher = Batcher(run, 8, 1)
    first, gone, last = (asyncio.create_task(batcher(i)) for i in (1, 2, 3))
    await asyncio.sleep(0.005)
    late = [asyncio.create_task(batcher(i)) for i in (4, 5)]
    await asyncio.sleep(0.005)
    late[0].cancel()
    run.gate.set()
    assert await asyncio.gather(first, gone, last, late[1]) == [2, 4, 6, 10]
    assert run.batches == [[1, 2, 3], [5]]
    with pytest.raises(asyncio.CancelledError):
        await late[0]


async def test_a_call_that_is_cancelled_leaves_no_caller_waiting() -> None:
    async def run(items: Sequence[int]) -> list[int]:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(Batcher(run, 8, 1)(1), timeout=5)
