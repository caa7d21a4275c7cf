"""Load on a live server: a fixed number of requests in flight, or arrivals in time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from echolm_lab.policies.base import AnswerPolicy, Reply
from echolm_lab.tasks import Item


@dataclass(frozen=True)
class Record:
    """What became of one request.

    Attributes:
        reply: None if it failed.
        latency_s: from its arrival to the end of its answer.
        finished_s: when that was, from the start of the run.
    """

    item: Item
    reply: Reply | None
    error: str
    latency_s: float
    finished_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """All requests of one run, in the order in which they were sent."""

    records: tuple[Record, ...]
    seconds: float

    @property
    def failed(self) -> int:
        """Requests without an answer."""
        return sum(record.reply is None for record in self.records)

    @property
    def throughput(self) -> float:
        """Answered requests per second."""
        return (len(self.records) - self.failed) / self.seconds

    @property
    def steady_throughput(self) -> float:
        """Answered requests per second while the server was full.

        The first and the last tenth of the answers do not count: a run starts with an idle
        server, and ends with one that waits for its slowest requests.
        """
        ends = sorted(r.finished_s for r in self.records if r.reply is not None)
        tenth = len(ends) // 10
        seconds = ends[-1 - tenth] - ends[tenth] if ends else 0.0
        return (len(ends) - 1 - 2 * tenth) / seconds if seconds > 0 else self.throughput

    def latency_quantile(self, q: float) -> float:
        """Latency in seconds below which a share ``q`` of the answered requests lie."""
        return float(np.quantile([r.latency_s for r in self.records if r.reply is not None], q))


OnRecord = Callable[[Record], None]


async def _send(policy: AnswerPolicy, item: Item, arrived: float, started: float) -> Record:
    try:
        reply = await policy.send(item)
        now = time.perf_counter()
        return Record(item, reply, "", now - arrived, now - started)
    except Exception as error:  # a failed request is a result, whatever failed
        message = f"{type(error).__name__}: {error}"
        now = time.perf_counter()
        return Record(item, None, message, now - arrived, now - started)


async def closed_loop(
    policy: AnswerPolicy,
    items: Sequence[Item],
    concurrency: int,
    on_record: OnRecord = lambda record: None,
    limit_s: float = math.inf,
) -> Run:
    """Send all items in order with ``concurrency`` in flight: the server at saturation.

    Args:
        limit_s: after this nothing more is sent; what was is waited for.
    """
    records: list[Record | None] = [None] * len(items)
    waiting = iter(enumerate(items))

    async def worker() -> None:
        for index, item in waiting:
            if time.perf_counter() - started > limit_s:
                return
            record = await _send(policy, item, time.perf_counter(), started)
            records[index] = record
            on_record(record)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(min(concurrency, len(items)))))
    seconds = time.perf_counter() - started
    return Run(tuple(r for r in records if r is not None), seconds)


async def open_loop(
    policy: AnswerPolicy,
    items: Sequence[Item],
    arrivals_s: Sequence[float],
    on_record: OnRecord = lambda record: None,
) -> Run:
    """Send each item at its arrival time, whether or not earlier ones are answered.

    Args:
        arrivals_s: seconds from the start, ascending, one per item.
    """

    async def at(item: Item, arrival: float) -> Record:
        record = await _send(policy, item, arrival, started)
        on_record(record)
        return record

    started = time.perf_counter()
    tasks = []
    for item, offset in zip(items, arrivals_s, strict=True):
        await asyncio.sleep(max(0.0, started + offset - time.perf_counter()))
        # Latency counts from when the request was due, so that a late sender hides nothing.
        tasks.append(asyncio.create_task(at(item, started + offset)))
    records = await asyncio.gather(*tasks)
    return Run(tuple(records), time.perf_counter() - started)


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """``count`` arrival times in seconds of a Poisson process with ``rate`` per second."""
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return [float(t) for t in np.cumsum(gaps)]


def scores(run: Run) -> list[float]:
    """The score of each request's answer; a request without an answer scores 0."""
    return [
        0.0 if record.reply is None else record.item.score(record.reply.text)
        for record in run.records
    ]


def offload_share(run: Run, large: str = "large_llm") -> float:
    """Share of the answered requests that the large LLM, which has that name, did not answer."""
    answered = [r.reply for r in run.records if r.reply is not None]
    return sum(reply.llm != large for reply in answered) / max(1, len(answered))
