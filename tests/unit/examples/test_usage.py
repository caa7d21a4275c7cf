from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from echolm.examples.events import USAGE
from echolm.examples.usage import UsageRecorder
from echolm.learning.event_log import START
from echolm.learning.fake_log import MemoryEventLog

COSTS = {"small": 0.1, "large": 1.0}


def served(*ids: int, llm: str = "small", quality: float = 0.8) -> Any:
    decision = SimpleNamespace(example_ids=ids, llm=llm, quality=quality)
    return SimpleNamespace(decision=decision)


@pytest.fixture
def log() -> MemoryEventLog:
    return MemoryEventLog()


def told(log: MemoryEventLog) -> list[Any]:
    return [(e.kind, e.body["uses"]) for e in log.read(START, 100)]


async def test_an_offloads_examples_share_its_credit(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1, 2))
    recorder.served(served(1, quality=0.5))
    await recorder.tell()
    assert told(log) == [(USAGE, [[1, 2, 0.9, 0.07], [2, 1, 0.4, 0.02]])]


async def test_what_was_told_is_not_told_again(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1))
    await recorder.tell()
    await recorder.tell()
    assert len(told(log)) == 1


async def test_answers_without_examples_and_of_the_dearest_llm_do_not_count(
    log: MemoryEventLog,
) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served())
    recorder.served(served(1, llm="large"))
    await recorder.tell()
    assert told(log) == []


async def test_an_outage_of_the_log_loses_nothing(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1))
    log.available = False
    await recorder.tell()
    recorder.served(served(1))
    log.available = True
    await recorder.tell()
    assert told(log) == [(USAGE, [[1, 2, 1.6, 0.04]])]


async def test_a_long_outage_is_bounded_and_counted(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    for i in range(6_000):
        recorder.served(served(i))
    assert recorder.lost == 1_000
    await recorder.tell()
    assert len(told(log)[0][1]) == 5_000
