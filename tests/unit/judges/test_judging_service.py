"""Judging behind a router, with fakes for LLMs, judge and retrieval."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from echolm.bandit.learning import BanditLearning
from echolm.errors import UnavailableError
from echolm.judges.service import JudgingService, Sampler, pair_scores
from echolm.learning.event_log import START, Event
from echolm.learning.feedback import RATING
from echolm.learning.learner import Learner
from echolm.learning.tokens import FeedbackTokens
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import Answer, Interaction, Request, Retrieved, Selected
from echolm.router.policy import Policy
from echolm.router.service import RouterService
from echolm.router.validation import build_request
from echolm.settings import LLMSettings, Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.judge import FakeJudge
from echolm.testing.llm import FakeLLM
from echolm.wiring.llms import build_endpoints
from echolm.wiring.routing import build_bandit

EMBEDDING = np.full(8, 8**-0.5, dtype=np.float32)
EXAMPLES = (Selected(11, "past request", "past answer", 0.9, 0.8),)


class Retriever:
    async def retrieve(self, request: Request) -> Retrieved:
        return Retrieved(EMBEDDING, EXAMPLES)


class Sink:
    async def submit(self, interaction: Interaction) -> None: ...


@dataclass
class Counts:
    results: list[tuple[str, str]] = field(default_factory=list)
    ratings: list[tuple[str, float, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def judged(self, kind: str, result: str, tokens: int, seconds: float) -> None:
        self.results.append((kind, result))
        self.tokens += tokens
        self.seconds += seconds

    def rated(self, llm: str, score: float, predicted: float) -> None:
        self.ratings.append((llm, score, predicted))


class Setup:
    """A router and what judges its answers; ``answers`` says which LLM the router takes."""

    def __init__(self, judge: FakeJudge | None = None, **values: Any) -> None:
        judging = {"kind": "grader", "grader": "a:b", "sample_share": 1.0, "solicited_share": 0.0}
        llms = values.pop("llms", Settings().llms)
        self.settings = settings = Settings(judging={**judging, **values}, llms=llms)
        self.llms = {
            llm.name: FakeLLM(reply=lambda prompt, name=llm.name: f"by {name}")
            for llm in settings.llms
        }
        self.load, self.log, self.counts = LoadTracker(), MemoryEventLog(), Counts()
        featurizer, self.bandit = build_bandit(settings)
        bias = LoadBias(settings.routing, settings.llms, self.load)
        policy = Policy(featurizer, self.bandit, bias, np.random.default_rng(1))
        endpoints = build_endpoints(settings, self.llms)
        self.judge = judge or FakeJudge({f"by {name}": 0.5 for name in self.llms})
        self.judging = JudgingService(
            settings, self.judge, endpoints, policy, self.load, self.log, self.counts
        )
        self.tokens = FeedbackTokens("key", 60)
        self.router = RouterService(
            settings=settings,
            endpoints=endpoints,
            retriever=Retriever(),
            policy=policy,
            tokens=self.tokens,
            sink=Sink(),
            load=self.load,
            observer=self.judging,
        )

    def route_to(self, name: str) -> None:
        self.bandit._floor = 0.0
        for arm, model in self.bandit.arms.items():
            weights = np.full(model.mean.shape, 5.0 if arm == name else -5.0)
            model.restore({**model.state(), "b": model.posterior.A @ weights})

    async def ask(self, expected: str, **values: Any) -> Answer:
        self.route_to(expected)
        answer = await self.router.answer(build_request(self.settings, text="a request", **values))
        assert answer.llm == expected
        return answer

    async def events(self) -> list[Event]:
        while self.judging.tasks:
            await asyncio.gather(*self.judging.tasks, return_exceptions=True)
        return self.log.read(START, 100)


# What is compared with what


async def test_a_small_llms_answer_is_held_against_the_large_ones() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.7, "by large_llm": 0.9}))
    answer = await setup.ask("small_llm", tenant="acme")
    rated, reference = await setup.events()
    assert setup.judge.asked == [
        ("a request", "by small_llm", "by large_llm"),
        ("a request", "by large_llm", None),
    ]
    decision = setup.tokens.load(answer.feedback_token)
    assert (rated.kind, rated.body["score"], rated.body["source"]) == (RATING, 0.7, "judge:fake")
    assert rated.body["request_id"] == decision.request_id
    assert (rated.body["llm"], rated.body["tenant"]) == ("small_llm", "acme")
    assert rated.body["example_ids"] == [11]
    assert (reference.body["llm"], reference.body["score"]) == ("large_llm", 0.9)
    assert reference.body["request_id"] != decision.request_id
    assert reference.body["example_ids"] == []
    assert [e.body["judging"]["asked"] for e in (rated, reference)] == [False, True]
    assert setup.counts.ratings == [
        (e.body["llm"], e.body["score"], e.body["quality"]) for e in (rated, reference)
    ]


async def test_where_the_large_llm_answered_the_small_one_is_judged_with_the_examples() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.7, "by large_llm": 0.9}))
    answer = await setup.ask("large_llm")
    rated, reference = await setup.events()
    assert setup.llms["small_llm"].prompts == [
        "<|user|>past request<|assistant|>past answer<|end|><|user|>a request<|assistant|>"
    ]
    assert (rated.body["llm"], rated.body["score"]) == ("small_llm", 0.7)
    assert (rated.body["example_ids"], rated.body["propensity"]) == ([11], 1.0)
    assert rated.body["judging"]["asked"] is True
    decision = setup.tokens.load(answer.feedback_token)
    assert reference.body["request_id"] == decision.request_id
    assert rated.body["context"] == reference.body["context"]
    assert reference.body["judging"]["asked"] is False


async def test_agreement_with_the_reference_says_nothing_of_the_reference() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.7}, scale="agreement"))
    await setup.ask("large_llm")
    [event] = await setup.events()
    assert (event.body["llm"], event.body["score"]) == ("small_llm", 0.7)


async def test_a_comparison_rates_both_around_what_was_expected() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.0}, scale="preference"))
    await setup.ask("small_llm")
    small, large = await setup.events()
    assert large.body["score"] - small.body["score"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("share", "small", "large", "expected"),
    [
        (0.5, 0.9, 0.9, (0.9, 0.9)),
        (0.5, 0.6, 0.8, (0.7, 0.7)),
        (0.0, 0.5, 0.5, (0.25, 0.75)),
        (0.0, 1.0, 1.0, (0.5, 1.0)),
        (1.0, 0.0, 0.0, (0.5, 0.0)),
        (0.75, 1.0, 1.0, (1.0, 0.75)),
    ],
)
def test_pair_scores(
    share: float, small: float, large: float, expected: tuple[float, float]
) -> None:
    assert pair_scores(share, small, large) == pytest.approx(expected)


async def test_of_several_llms_one_is_drawn_by_the_routers_confidence() -> None:
    llms = tuple(
        LLMSettings(name=name, cost=cost, takes_examples=cost < 3)
        for name, cost in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    )
    setup = Setup(llms=llms, max_concurrent=1000)
    setup.route_to("c")
    setup.bandit._floor = 0.1
    for _ in range(100):
        await setup.router.answer(build_request(setup.settings, text="a request"))
    events = [e.body for e in await setup.events()]
    drawn = [e for e in events if e["judging"]["asked"] and e["llm"] != "c"]
    assert {e["llm"] for e in drawn} == {"a", "b"}
    assert {e["propensity"] for e in drawn} == {0.5}
    assert any(e["llm"] == "c" and e["judging"]["asked"] for e in events)  # a or b had answered


async def test_what_is_judged_teaches_the_bandit_and_a_caller_knows_better() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.1, "by large_llm": 0.9}))
    answer = await setup.ask("small_llm")
    events = [e.body for e in await setup.events()]
    assert events[0]["request_id"] == setup.tokens.load(answer.feedback_token).request_id
    callers = {k: v for k, v in events[0].items() if k not in ("source", "judging")} | {"score": 1}

    def learnt(*bodies: dict[str, Any]) -> np.ndarray[Any, Any]:
        log, (_, bandit) = MemoryEventLog(), build_bandit(setup.settings)
        for body in bodies:
            log.append(RATING, body)
        learner = Learner(log, [BanditLearning(bandit)])
        learner.catch_up()
        assert learner.skipped == 0
        return bandit.arms["small_llm"].mean

    judged, rated = dict(events[0]), callers
    assert not np.allclose(learnt(judged), learnt(rated))
    assert np.allclose(learnt(judged, rated), learnt(rated))
    assert np.allclose(learnt(rated, judged), learnt(rated))


# Cost


async def test_the_cost_is_counted_once_and_logged() -> None:
    setup = Setup()
    await setup.ask("small_llm")
    first, second = (e.body["judging"] for e in await setup.events())
    prompt = setup.llms["large_llm"].prompts[0]
    spent = len(prompt.split()) + len(["by", "large_llm"]) + 2 * setup.judge.tokens
    assert (first["tokens"], second["tokens"], second["seconds"]) == (spent, 0, 0)
    assert setup.counts.results == [("fake", "rated")]
    assert setup.counts.tokens == spent
    assert setup.counts.seconds > 0


# What is not judged


@pytest.mark.parametrize(
    "values",
    [
        {"cache_control": "no-store"},
        {"cache_control": "no-cache"},
        {"llm": "small_llm"},
        {"tenant": "private"},
    ],
)
async def test_what_must_not_be_judged_is_not(values: dict[str, str]) -> None:
    setup = Setup(exclude_tenants=["private"])
    await setup.ask("small_llm", **values)
    assert await setup.events() == []
    assert setup.llms["large_llm"].prompts == []
    assert setup.counts.results == []


async def test_nothing_is_judged_while_the_llms_are_busy() -> None:
    setup = Setup(max_in_flight_llm_requests=3)
    serving = setup.load.serving
    with serving("small_llm"), serving("large_llm"), serving("large_llm"):
        await setup.ask("small_llm")
        assert len(await setup.events()) == 2
        with serving("small_llm"):
            await setup.ask("small_llm")
    assert len(await setup.events()) == 2
    assert setup.counts.results == [("fake", "rated"), ("fake", "load")]


async def test_no_more_judgements_at_a_time_than_allowed() -> None:
    setup = Setup(max_concurrent=2)
    setup.llms["large_llm"].delay_s = 0.2
    for _ in range(3):
        await setup.ask("small_llm")
    assert len(await setup.events()) == 4
    assert sorted(setup.counts.results) == [("fake", "busy"), ("fake", "rated"), ("fake", "rated")]


# What fails


@pytest.mark.parametrize("error", [UnavailableError("down"), RuntimeError("a defect")])
async def test_a_judge_that_fails_harms_no_answer_and_is_counted(error: Exception) -> None:
    setup = Setup(FakeJudge(error=error))
    assert (await setup.ask("small_llm")).degraded == ""
    assert await setup.events() == []
    assert setup.counts.results == [("fake", "failed")]
    assert setup.counts.tokens > 0  # the second answer was paid for


async def test_a_reference_llm_that_is_down_is_counted() -> None:
    setup = Setup()
    setup.llms["large_llm"].error = UnavailableError("down")
    await setup.ask("small_llm")
    assert await setup.events() == []
    assert setup.counts.results == [("fake", "failed")]


async def test_a_log_that_is_down_is_counted() -> None:
    setup = Setup()
    setup.log.available = False
    await setup.ask("small_llm")
    await asyncio.gather(*setup.judging.tasks)
    assert setup.counts.results == [("fake", "failed")]


async def test_a_judge_that_cannot_decide_teaches_nothing() -> None:
    setup = Setup(FakeJudge({}))
    await setup.ask("small_llm")
    assert await setup.events() == []
    assert setup.counts.results == [("fake", "no_preference")]
    assert setup.counts.tokens > setup.judge.tokens


async def test_what_takes_too_long_is_dropped_and_its_generation_stopped() -> None:
    setup = Setup(timeout_s=0.05)
    setup.llms["large_llm"].delay_s = 60
    await setup.ask("small_llm")
    assert await setup.events() == []
    assert setup.counts.results == [("fake", "timeout")]
    assert len(setup.llms["large_llm"].cancelled) == 1


async def test_the_answer_does_not_wait_and_shutting_down_ends_judging() -> None:
    setup = Setup()
    setup.llms["large_llm"].delay_s = 60
    await asyncio.wait_for(setup.ask("small_llm"), 10)
    [task] = setup.judging.tasks
    await asyncio.sleep(0.01)
    assert setup.load.in_flight("large_llm") == 1
    task.cancel()  # as the runtime does with all tasks
    assert await setup.events() == []
    assert len(setup.llms["large_llm"].cancelled) == 1
    assert setup.load.in_flight("large_llm") == 0


# Sampling


def drawn(sampler: Sampler, solicited: list[bool]) -> list[str]:
    return [sampler.draw(one) for one in solicited]


def test_the_share_is_kept_and_split() -> None:
    rng = random.Random(0)
    solicited = [rng.random() < 0.05 for _ in range(20_000)]
    reasons = drawn(Sampler(0.02, 0.5, rng), solicited)
    assert reasons.count("random") == pytest.approx(200, abs=45)
    assert reasons.count("solicited") == pytest.approx(200, abs=15)
    at_random = [flag for flag, why in zip(solicited, reasons, strict=True) if why == "random"]
    assert sum(at_random) < 0.15 * len(at_random)  # it stays a sample of all requests


def test_what_is_not_spent_on_solicited_answers_is_saved_only_so_long() -> None:
    sampler = Sampler(0.1, 1.0, random.Random(0))
    assert drawn(sampler, [False] * 10_000) == [""] * 10_000
    assert drawn(sampler, [True] * 20).count("solicited") == 11


def test_nothing_and_everything() -> None:
    assert drawn(Sampler(0.0, 0.5, random.Random(0)), [True] * 100) == [""] * 100
    assert drawn(Sampler(1.0, 0.0, random.Random(0)), [False] * 9) == ["random"] * 9
    assert drawn(Sampler(1.0, 1.0, random.Random(0)), [True] * 9) == ["solicited"] * 9
