from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from echolm.examples.events import USAGE
from echolm.examples.usage import UsageRecorder
from echolm.learning.event_log import START
from echolm.primitives import STORED, Retrieved, Selected
from echolm.testing.event_log import MemoryEventLog

COSTS = {"small": 0.1, "large": 1.0}


def served(
    *ids: int,
    llm: str = "small",
    quality: float = 0.8,
    utility: float = 0.9,
    others: Sequence[float] = (),
) -> Any:
    """An answer with examples of one utility; others of other utilities were found as well."""
    doubt = math.prod(1 - u for u in (*[utility] * len(ids), *others))
    retrieved = Retrieved(
        examples=tuple(Selected(i, "q", "a", 0.9, utility) for i in ids), help_probability=1 - doubt
    )
    decision = SimpleNamespace(example_ids=ids, llm=llm, quality=quality)
    return SimpleNamespace(decision=decision, retrieved=retrieved)


@pytest.fixture
def log() -> MemoryEventLog:
    return MemoryEventLog()


def logged(log: MemoryEventLog) -> list[Any]:
    return [(e.kind, e.body["uses"]) for e in log.read(START, 100)]


async def test_an_example_is_credited_with_what_no_other_would_do(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1, 2))
    recorder.served(served(1, quality=0.5))
    recorder.served(served(3, others=(0.9, 0.5)))
    await recorder.flush()
    alone, beside_another = 0.5 * 0.9, 0.8 * 0.9 * 0.1
    assert logged(log) == [
        (
            USAGE,
            [
                [1, 2, pytest.approx(alone + beside_another, abs=1e-3), 0.07],
                [2, 1, pytest.approx(beside_another, abs=1e-3), 0.02],
                [3, 1, pytest.approx(beside_another * 0.5, abs=1e-3), 0.02],
            ],
        )
    ]


async def test_an_example_that_is_certain_to_help_has_a_finite_credit(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1, utility=1.0))
    await recorder.flush()
    [(_, [[_, _, credit, _]])] = logged(log)
    assert 0 <= credit <= 0.8


async def test_what_was_told_is_not_told_again(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1))
    await recorder.flush()
    await recorder.flush()
    assert len(logged(log)) == 1


async def test_answers_without_examples_and_of_the_strongest_llm_do_not_count(
    log: MemoryEventLog,
) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served())
    recorder.served(served(1, llm="large"))
    await recorder.flush()
    assert logged(log) == []


async def test_an_answer_from_the_store_is_its_examples_alone(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1, llm=STORED, quality=0.99))
    await recorder.flush()
    assert logged(log) == [(USAGE, [[1, 1, 0.99, 0.0]])]


async def test_an_outage_of_the_log_loses_nothing(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1))
    log.available = False
    await recorder.flush()
    recorder.served(served(1))
    log.available = True
    await recorder.flush()
    assert logged(log) == [(USAGE, [[1, 2, pytest.approx(2 * 0.8 * 0.9, abs=1e-3), 0.04]])]


async def test_a_long_outage_is_bounded_and_counted(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    for i in range(6_000):
        recorder.served(served(i))
    assert recorder.lost == 1_000
    await recorder.flush()
    assert len(logged(log)[0][1]) == 5_000


async def test_what_is_no_number_is_left_out_and_the_rest_is_logged(log: MemoryEventLog) -> None:
    recorder = UsageRecorder(log, COSTS)
    recorder.served(served(1, quality=math.nan))
    recorder.served(served(2))
    await recorder.flush()
    [(_, uses)] = logged(log)
    assert [i for i, *_ in uses] == [2]
    assert recorder.lost == 1
