from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from echolm_lab.experiments.load import Record, Run, closed_loop, open_loop, poisson_arrivals
from echolm_lab.policies.base import Reply
from echolm_lab.tasks import WorkItem
from workload_items import items


class Gate:
    """A policy whose requests wait until the test lets one of them go."""

    name = "gate"

    def __init__(self) -> None:
        self.begun: list[WorkItem] = []
        self.waiting: dict[str, asyncio.Event] = {}

    async def send(self, item: WorkItem) -> Reply:
        self.begun.append(item)
        self.waiting[item.text] = asyncio.Event()
        await self.waiting[item.text].wait()
        return Reply(item.answer, "large_llm")

    def release(self, text: str) -> None:
        self.waiting.pop(text).set()


class Scripted:
    """A policy that takes as long as it is told, and fails where it is told."""

    name = "scripted"

    def __init__(
        self,
        seconds: dict[str, float] | None = None,
        errors: dict[str, Exception] | None = None,
        freeze_s: float = 0.0,
    ) -> None:
        self._seconds = seconds or {}
        self._errors = errors or {}
        self._freeze_s = freeze_s
        self.sent_at: dict[str, float] = {}
        self.calls: list[str] = []

    async def send(self, item: WorkItem) -> Reply:
        self.calls.append(item.text)
        self.sent_at[item.text] = time.perf_counter()
        if self._freeze_s and len(self.calls) == 1:
            time.sleep(self._freeze_s)  # the sender itself is held up
        await asyncio.sleep(self._seconds.get(item.text, 0.0))
        if item.text in self._errors:
            raise self._errors[item.text]
        return Reply(item.answer, "large_llm")


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


# Closed loop


async def test_a_closed_loop_keeps_exactly_its_concurrency_in_flight() -> None:
    gate, asked = Gate(), items(10)
    loop = asyncio.create_task(closed_loop(gate, asked, 3))
    for done in range(10):
        await settle()
        assert len(gate.waiting) == min(3, 10 - done)
        # Whichever ends, the next one starts: the latest here, so that others stay behind.
        gate.release(list(gate.waiting)[-1])
    run = await loop
    assert gate.begun == asked
    assert [record.item for record in run.records] == asked


async def test_a_closed_loop_answers_each_item_once_and_keeps_their_order() -> None:
    asked = items(40)
    delays = {item.text: (n * 7 % 5) * 1e-3 for n, item in enumerate(asked)}
    policy = Scripted(delays)
    seen: list[Record] = []
    run = await closed_loop(policy, asked, 8, seen.append)
    assert policy.calls == [item.text for item in asked]
    assert [record.item for record in run.records] == asked
    assert [record.reply and record.reply.text for record in run.records] == [
        item.answer for item in asked
    ]
    # Told as they end, which is another order.
    assert {id(record) for record in seen} == {id(record) for record in run.records}
    assert len(seen) == 40


async def test_a_closed_loop_counts_latency_from_its_own_sending() -> None:
    asked = items(3)
    run = await closed_loop(Scripted({item.text: 0.03 for item in asked}), asked, 1)
    assert run.seconds >= 0.09
    assert all(0.03 <= record.latency_s < run.seconds - 0.05 for record in run.records)


@pytest.mark.parametrize("concurrency", [4, 400])
async def test_a_closed_loop_of_fewer_items_than_concurrency_ends(concurrency: int) -> None:
    run = await closed_loop(Scripted(), items(4), concurrency)
    assert len(run.records) == 4
    assert (await closed_loop(Scripted(), [], concurrency)).records == ()


async def test_a_closed_loop_sends_nothing_after_its_limit() -> None:
    gate, asked = Gate(), items(5)
    loop = asyncio.create_task(closed_loop(gate, asked, 2, limit_s=0.05))
    await settle()
    gate.release("request 0")
    await settle()
    assert len(gate.begun) == 3
    await asyncio.sleep(0.1)
    gate.release("request 1")
    gate.release("request 2")
    run = await loop
    assert gate.begun == asked[:3]
    assert [record.item for record in run.records] == asked[:3]


async def test_in_a_closed_loop_failures_are_records() -> None:
    asked = items(6)
    policy = Scripted(errors={"request 2": ValueError("no"), "request 5": TimeoutError()})
    run = await closed_loop(policy, asked, 2)
    assert len(policy.calls) == 6
    assert [record.reply is None for record in run.records] == [False, False, True] * 2
    assert [record.error for record in run.records] == [
        *("", "", "ValueError: no"),
        *("", "", "TimeoutError: "),
    ]
    assert run.failed == 2
    assert run.throughput == pytest.approx(4 / run.seconds)


async def test_a_loop_that_is_cancelled_leaves_no_request_behind() -> None:
    gate = Gate()
    loop = asyncio.create_task(closed_loop(gate, items(10), 3))
    await settle()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop
    await settle()
    assert len(gate.begun) == 3
    assert len(asyncio.all_tasks()) == 1


# Open loop


async def test_an_open_loop_sends_on_time_whatever_earlier_requests_do() -> None:
    asked = items(5)
    arrivals = [0.0, 0.02, 0.04, 0.06, 0.08]
    # The first takes longer than all the others together, the second fails.
    policy = Scripted({"request 0": 0.3}, {"request 1": ValueError("no")})
    started = time.perf_counter()
    run = await open_loop(policy, asked, arrivals)
    assert policy.calls == [item.text for item in asked]
    for item, arrival in zip(asked, arrivals, strict=True):
        late = policy.sent_at[item.text] - started - arrival
        assert -1e-3 <= late < 0.15  # long before the first was answered
    assert [record.item for record in run.records] == asked
    assert run.failed == 1
    assert run.records[0].latency_s >= 0.3
    assert run.records[4].latency_s < 0.2


async def test_an_open_loop_counts_latency_from_when_a_request_was_due() -> None:
    """A sender that is held up must not make the server look fast."""
    run = await open_loop(Scripted(freeze_s=0.2), items(3), [0.0, 0.05, 0.1])
    first, second, third = (record.latency_s for record in run.records)
    assert first >= 0.2
    assert second >= 0.15 - 1e-3
    assert third >= 0.1 - 1e-3


async def test_an_open_loop_reports_each_record_once() -> None:
    seen: list[Record] = []
    run = await open_loop(Scripted(), items(7), [0.0] * 7, seen.append)
    assert sorted(id(record) for record in seen) == sorted(id(record) for record in run.records)
    assert len(seen) == 7


async def test_an_open_loop_wants_one_arrival_per_item() -> None:
    with pytest.raises(ValueError, match=r"longer|shorter"):
        await open_loop(Scripted(), items(2), [0.0])


# Arrivals


def test_poisson_arrivals_ascend_with_exponential_gaps_of_the_right_mean() -> None:
    arrivals = poisson_arrivals(20_000, 8.0, seed=3)
    assert all(earlier <= later for earlier, later in pairwise(arrivals))
    gaps = np.diff([0.0, *arrivals])
    assert float(np.mean(gaps)) == pytest.approx(1 / 8.0, rel=0.04)
    assert float(np.std(gaps)) == pytest.approx(1 / 8.0, rel=0.05)
    # No memory: those that have waited a mean gap wait as long again.
    assert float(np.mean(gaps > 1 / 8.0)) == pytest.approx(float(np.exp(-1)), abs=0.02)


def test_poisson_arrivals_follow_their_seed() -> None:
    assert poisson_arrivals(50, 2.0, seed=1) == poisson_arrivals(50, 2.0, seed=1)
    assert poisson_arrivals(50, 2.0, seed=1) != poisson_arrivals(50, 2.0, seed=2)
    assert poisson_arrivals(0, 2.0, seed=1) == []


# What a run says


def record(latency_s: float, answered: bool = True) -> Record:
    item = items(1)[0]
    return Record(item, Reply("a", "large_llm") if answered else None, "", latency_s)


def test_failures_count_neither_as_throughput_nor_in_latency() -> None:
    run = Run((*(record(n / 100) for n in range(101)), *[record(99.0, False)] * 9), 10.0)
    assert run.failed == 9
    assert run.throughput == pytest.approx(10.1)
    assert run.latency_quantile(0.5) == pytest.approx(0.5)
    assert run.latency_quantile(0.99) == pytest.approx(0.99)
    assert run.latency_quantile(1.0) == pytest.approx(1.0)


def test_steady_throughput_leaves_out_the_start_and_the_slowest() -> None:
    # Ten answers a second from the second second on, the first and the last far off.
    ends = [0.1, *(2.0 + 0.1 * i for i in range(18)), 60.0]
    records = tuple(replace(record(0.1), finished_s=end) for end in ends)
    run = Run(records, 60.0)
    assert run.steady_throughput == pytest.approx(10.0)
    assert run.throughput == pytest.approx(20 / 60)
