"""What is learnt of stored answers where the strongest LLM answers."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from echolm.bandit.reuse import COMPARISON, read
from echolm.errors import UnavailableError
from echolm.judges.base import Judge, Scale
from echolm.judges.service import Reason
from echolm.judges.stored import StoredComparisons
from echolm.learning.event_log import START
from echolm.load.tracker import LoadTracker
from echolm.primitives import Request, Retrieved, Reusable, Sampling
from echolm.retrieval.reuse import REUSE_FEATURES
from echolm.settings import Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.judge import FakeJudge

FOUND = Reusable(7, "stored", True, np.ones(len(REUSE_FEATURES), dtype=np.float32))


@dataclass
class Metrics:
    compared_: list[tuple[bool, str]] = field(default_factory=list)
    judged_: list[str] = field(default_factory=list)

    def judged(self, kind: str, reason: Reason, result: str, tokens: int, seconds: float) -> None:
        self.judged_.append(result)

    def stored_compared(self, exact: bool, result: str) -> None:
        self.compared_.append((exact, result))


class Setup:
    def __init__(self, judge: Judge | None = None, **judging: Any) -> None:
        settings = Settings.model_validate({"judging": {"sample_share": 1.0, **judging}})
        self.log, self.metrics, self.load = MemoryEventLog(), Metrics(), LoadTracker()
        self.comparisons = StoredComparisons(
            settings, judge, self.load, self.log, self.metrics, random.Random(0)
        )

    async def served(
        self,
        text: str,
        llm: str = "large_llm",
        check: float = 0.0,
        found: Reusable | None = FOUND,
        **request: Any,
    ) -> None:
        asked = Request("q", Sampling(), **request)
        self.comparisons.served(
            SimpleNamespace(  # type: ignore[arg-type]
                request=asked,
                retrieved=Retrieved(reusable=found),
                decision=SimpleNamespace(llm=llm),
                text=text,
                check=check,
            )
        )
        while self.comparisons.tasks:
            await asyncio.gather(*self.comparisons.tasks)

    async def learned(self) -> list[tuple[bool, bool | None]]:
        await self.comparisons.flush()
        events = self.log.read(START, 100)
        assert all(event.kind == COMPARISON for event in events)
        return [(c.same, c.right) for event in events for c in read(event.body)]


async def test_the_same_text_is_right_and_another_wrong_without_a_judge() -> None:
    setup = Setup()
    for text in ("stored", " stored ", "fresh"):
        await setup.served(text)
    assert await setup.learned() == [(True, None), (True, None), (False, False)]
    assert [result for _, result in setup.metrics.compared_] == ["same", "same", "wrong"]


async def test_the_log_has_all_that_the_model_learns_from() -> None:
    setup = Setup()
    await setup.served("fresh", check=0.03)
    await setup.comparisons.flush()
    [event] = setup.log.read(START, 10)
    [made] = read(event.body)
    assert (made.id, made.exact, made.propensity) == (7, True, 0.03)
    np.testing.assert_array_equal(made.features, FOUND.features)


@pytest.mark.parametrize(
    "changes",
    [{"llm": "small_llm"}, {"llm": "stored"}, {"found": None}, {"store": False}],
)
async def test_other_answers_are_not_compared(changes: dict[str, Any]) -> None:
    setup = Setup()
    await setup.served("fresh", **changes)
    assert await setup.learned() == []


@pytest.mark.parametrize(
    ("scale", "scores", "right"),
    [
        ("preference", {"stored": 0.5}, True),
        ("preference", {"stored": 1.0}, True),
        ("preference", {"stored": 0.4}, False),
        ("preference", {}, None),
        ("agreement", {"stored": 0.95}, True),
        ("agreement", {"stored": 0.6}, False),
        ("absolute", {"stored": 0.9, "fresh": 0.9}, True),
        ("absolute", {"stored": 0.5, "fresh": 0.9}, False),
        ("absolute", {"stored": 0.9}, None),
    ],
)
async def test_a_judge_says_whether_another_text_is_as_good(
    scale: Scale, scores: dict[str, float], right: bool | None
) -> None:
    setup = Setup(FakeJudge(scores, scale))
    await setup.served("fresh")
    assert await setup.learned() == [(False, right)]


async def test_the_same_text_needs_no_judge() -> None:
    judge = FakeJudge()
    setup = Setup(judge)
    await setup.served("stored")
    assert await setup.learned() == [(True, None)]
    assert judge.asked == []


async def test_a_share_is_judged_and_every_check() -> None:
    judge = FakeJudge({"stored": 1.0}, "preference")
    setup = Setup(judge, sample_share=0.0)
    await setup.served("fresh")
    assert judge.asked == []
    await setup.served("fresh", check=0.03)
    assert judge.asked == [("q", "stored", "fresh")]
    assert await setup.learned() == [(False, None), (False, True)]


async def test_nothing_is_judged_under_load_or_of_excluded_tenants() -> None:
    judge = FakeJudge({"stored": 1.0}, "preference")
    setup = Setup(judge, max_in_flight_llm_requests=0, exclude_tenants=["secret"])
    with setup.load.serving("large_llm"):
        await setup.served("fresh")
    await setup.served("fresh", tenant="secret")
    assert judge.asked == []
    assert await setup.learned() == [(False, None), (False, None)]


@pytest.mark.parametrize("error", [UnavailableError("down"), RuntimeError("broken")])
async def test_a_judge_that_fails_leaves_it_unjudged(error: Exception) -> None:
    setup = Setup(FakeJudge(error=error))
    await setup.served("fresh")
    assert await setup.learned() == [(False, None)]
    assert setup.metrics.judged_ == ["failed"]


async def test_what_cannot_be_logged_waits() -> None:
    setup = Setup()
    await setup.served("stored")
    setup.log.available = False
    await setup.comparisons.flush()
    await setup.served("fresh", found=replace(FOUND, exact=False))
    setup.log.available = True
    assert await setup.learned() == [(True, None), (False, False)]
