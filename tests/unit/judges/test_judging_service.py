"""Judging behind a router, with fakes for LLMs, judge and retrieval."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from echolm.bandit.learning import BanditLearning
from echolm.errors import UnavailableError
from echolm.judges.service import JudgingService, Reason, Sampler
from echolm.learning.event_log import START, Event
from echolm.learning.feedback import PREFERENCE, RATING
from echolm.learning.learner import Learner
from echolm.learning.logistic import GaussianWeights
from echolm.learning.tokens import FeedbackTokens
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import Answer, Interaction, Request, Retrieved, Selected
from echolm.router.policy import Policy
from echolm.router.service import RouterService
from echolm.router.validation import build_request
from echolm.router.warm_up import LEAST_CASES, GivenUp, WarmUp
from echolm.settings import LLMSettings, Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.front_door import FrontDoor
from echolm.testing.judge import FakeJudge
from echolm.testing.llm import FakeLLM
from echolm.wiring.llms import build_endpoints
from echolm.wiring.routing import build_bandit

EMBEDDING = np.full(8, 8**-0.5, dtype=np.float32)
EXAMPLES = (Selected(11, "past request", "past answer", 0.9, 0.8),)
TOOLS = {"tools": json.dumps([{"type": "function", "function": {"name": "weather"}}])}


@dataclass
class Retriever:
    examples: tuple[Selected, ...] = EXAMPLES

    async def retrieve(self, request: Request) -> Retrieved:
        return Retrieved(EMBEDDING, self.examples)


class Sink:
    async def submit(self, interaction: Interaction) -> None: ...


@dataclass
class Counts:
    results: list[tuple[str, str]] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    ratings: list[tuple[str, float, float]] = field(default_factory=list)
    comparisons: list[tuple[str, Reason, float]] = field(default_factory=list)
    orders: list[bool] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def both_orders(self, kind: str, consistent: bool) -> None:
        self.orders.append(consistent)

    def warm_up_given_up(self, reason: GivenUp) -> None:
        self.given_up.append(reason)

    def compared(self, llm: str, reason: Reason, share: float) -> None:
        self.comparisons.append((llm, reason, share))

    def judged(self, kind: str, reason: Reason, result: str, tokens: int, seconds: float) -> None:
        self.results.append((kind, result))
        self.reasons.append(reason)
        self.tokens += tokens
        self.seconds += seconds

    def rated(self, llm: str, score: float, predicted: float) -> None:
        self.ratings.append((llm, score, predicted))


class Setup:
    """A router and what judges its answers.

    All answers are judged; with ``warm_up``, a number of ratings, only those of new LLMs.
    """

    def __init__(
        self, judge: FakeJudge | None = None, warm_up: float | None = None, **values: Any
    ) -> None:
        share = 1.0 if warm_up is None else 0.0
        judging = {"kind": "grader", "grader": "a:b", "sample_share": share, "solicited_share": 0.0}
        llms = values.pop("llms", Settings().llms)
        self.settings = settings = Settings(judging={**judging, **values}, llms=llms)
        self.llms = {
            llm.name: FakeLLM(reply=lambda prompt, name=llm.name: f"by {name}")
            for llm in settings.llms
        }
        self.load, self.log, self.counts = LoadTracker(), MemoryEventLog(), Counts()
        self.featurizer, self.bandit = build_bandit(settings)
        bias = LoadBias(settings.routing, settings.llms, self.load)
        self.warm_up = warm_up and WarmUp(
            self.bandit, settings.reference_llm.name, warm_up, self.counts.warm_up_given_up
        )
        rng = np.random.default_rng(1)
        policy = Policy(self.featurizer, self.bandit, bias, rng, self.warm_up)
        endpoints = build_endpoints(settings, self.llms)
        self.judge = judge or FakeJudge({f"by {name}": 0.5 for name in self.llms})
        self.judging = JudgingService(
            settings, self.judge, endpoints, policy, self.load, self.log, self.counts, self.warm_up
        )
        self.tokens, self.retriever = FeedbackTokens("key", 60), Retriever()
        service = RouterService(
            settings=settings,
            endpoints=endpoints,
            policy=policy,
            tokens=self.tokens,
            sink=Sink(),
            load=self.load,
            observer=self.judging,
        )
        self.router = FrontDoor(service, self.retriever)

    def route_to(self, name: str) -> None:
        self.bandit._floor = 0.0
        for arm, model in self.bandit.arms.items():
            mean = np.zeros(model.prior.mean.shape)
            mean[:2] = 5.0 if arm == name else -5.0
            model.weights = GaussianWeights(mean, 1e-6 * model.prior.covariance)

    async def ask(self, expected: str, **values: Any) -> Answer:
        if self.warm_up is None:
            self.route_to(expected)
        values = {"text": None if "messages" in values else "a request", **values}
        answer = await self.router.answer(build_request(self.settings, **values))
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


async def test_a_request_that_the_other_llm_cannot_take_is_not_judged() -> None:
    setup = Setup()
    setup.llms["large_llm"].cannot_take = ("repetition_penalty",)
    await setup.ask("small_llm", repetition_penalty=1.5)
    assert await setup.events() == []
    await setup.ask("small_llm")
    assert len(await setup.events()) == 2


async def test_a_judge_reads_what_was_said_before() -> None:
    setup = Setup()
    said = [("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = json.dumps([{"role": role, "content": content} for role, content in said])
    await setup.ask("small_llm", messages=messages)
    await setup.events()
    assert {request for request, _, _ in setup.judge.asked} == {
        "user: a\n\nassistant: b\n\nuser: c"
    }
    assert "<|user|>a<|assistant|>b<|end|>" in setup.llms["large_llm"].prompts[0]


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


@pytest.mark.parametrize(
    ("score", "better", "share"),
    [(0.0, "large_llm", 1.0), (0.25, "large_llm", 0.75), (0.5, "", 0.5), (1.0, "small_llm", 1.0)],
)
async def test_a_comparison_is_a_preference_with_what_the_better_answer_has_won(
    score: float, better: str, share: float
) -> None:
    setup = Setup(FakeJudge({"by small_llm": score}, scale="preference", consistent=True))
    answer = await setup.ask("small_llm", tenant="acme")
    [event] = await setup.events()
    body, judging = event.body, event.body["judging"]
    assert (event.kind, body["source"], body["share"]) == (PREFERENCE, "judge:fake", share)
    assert better in ("", body["better"]["llm"])
    small, large = (
        ("better", "worse") if body["better"]["llm"] == "small_llm" else ("worse", "better")
    )
    token = setup.tokens.load(answer.feedback_token)
    assert (body[small]["request_id"], body[small]["tenant"]) == (token.request_id, "acme")
    assert body[large]["llm"] == "large_llm"
    assert judging["asked"] == [large]
    assert (judging["reason"], judging["probability"]) == ("random", 1.0)
    assert judging["tokens"] == setup.counts.tokens > 0
    assert judging["consistent"] is True
    assert setup.counts.orders == [True]
    assert setup.counts.comparisons == [
        ("small_llm", "random", score),
        ("large_llm", "random", 1 - score),
    ]
    learner = Learner(setup.log, [BanditLearning(setup.bandit, setup.featurizer)])
    learner.catch_up()
    assert (learner.applied, learner.skipped) == (1, 0)
    assert [arm.evidence for arm in setup.bandit.arms.values()] == [(0, 1), (0, 1)]


async def test_llms_are_not_compared_on_what_one_of_them_cannot_take() -> None:
    setup = Setup()
    setup.llms["large_llm"].cannot_take = ("min_tokens",)
    await setup.ask("small_llm", min_tokens=2)
    assert not setup.judging.tasks
    await setup.ask("small_llm", repetition_penalty=1.5)
    assert await setup.events()
    assert setup.llms["large_llm"].samplings[-1].repetition_penalty == 1.5


async def test_of_several_llms_one_is_drawn_by_the_routers_confidence() -> None:
    llms = tuple(
        LLMSettings(chat_template="echolm", name=name, cost=cost, takes_examples=cost < 3)
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
    assert [e["propensity"] for e in drawn] == pytest.approx([0.5] * len(drawn), abs=0.02)
    assert any(e["llm"] == "c" and e["judging"]["asked"] for e in events)  # a or b had answered


async def test_what_is_judged_teaches_the_bandit_and_a_caller_knows_better() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.1, "by large_llm": 0.9}))
    answer = await setup.ask("small_llm")
    events = [e.body for e in await setup.events()]
    assert events[0]["request_id"] == setup.tokens.load(answer.feedback_token).request_id
    callers = {k: v for k, v in events[0].items() if k not in ("source", "judging")} | {"score": 1}

    def learnt(*bodies: dict[str, Any]) -> np.ndarray[Any, Any]:
        log, (featurizer, bandit) = MemoryEventLog(), build_bandit(setup.settings)
        for body in bodies:
            log.append(RATING, body)
        learner = Learner(log, [BanditLearning(bandit, featurizer)])
        learner.catch_up()
        assert learner.skipped == 0
        return bandit.arms["small_llm"].weights.mean

    judged, rated = dict(events[0]), callers
    assert not np.allclose(learnt(judged), learnt(rated))
    # What was learnt of the judge is taken out again, but for what it did to the noise.
    assert np.allclose(learnt(judged, rated), learnt(rated), atol=0.05)
    assert np.allclose(learnt(rated, judged), learnt(rated))


# New LLMs


async def test_a_new_llm_is_asked_beside_with_the_examples_and_without_them() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.0}, scale="preference"), warm_up=6)
    answer = await setup.ask("large_llm")
    events = [event.body for event in await setup.events()]
    assert sorted(setup.llms["small_llm"].prompts) == [
        "<|user|>a request<|assistant|>",
        "<|user|>past request<|assistant|>past answer<|end|><|user|>a request<|assistant|>",
    ]
    assert setup.judge.asked == [("a request", "by small_llm", "by large_llm")] * 2
    served = setup.tokens.load(answer.feedback_token)
    assert {body["better"]["request_id"] for body in events} == {served.request_id}
    assert sorted(body["worse"]["example_ids"] for body in events) == [[], [11]]
    assert {body["worse"]["selection"] for body in events} == {""}
    assert len({body["worse"]["request_id"] for body in events}) == 2
    for body in events:
        assert body["judging"]["asked"] == ["worse"]
        assert (body["judging"]["reason"], body["judging"]["probability"]) == ("shadow", 0.0)
    assert setup.counts.reasons == ["shadow", "shadow"]
    Learner(setup.log, [BanditLearning(setup.bandit, setup.featurizer)]).catch_up()
    assert setup.bandit.arms["small_llm"].evidence == (1, 1)


async def test_where_there_are_no_examples_it_is_asked_once() -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.5}, scale="preference"), warm_up=6)
    setup.retriever.examples = ()
    await setup.ask("large_llm")
    [event] = await setup.events()
    assert setup.llms["small_llm"].prompts == ["<|user|>a request<|assistant|>"]
    sides = {event.body[side]["llm"]: event.body[side] for side in ("better", "worse")}
    assert sides["small_llm"]["context"][1] == 0.0


@pytest.mark.parametrize("examples", [EXAMPLES, ()])
async def test_it_is_asked_only_for_what_is_not_known_yet(examples: tuple[Selected, ...]) -> None:
    setup = Setup(FakeJudge({"by small_llm": 0.5}, scale="preference"), warm_up=3)
    setup.retriever.examples = examples
    learner = Learner(setup.log, [BanditLearning(setup.bandit, setup.featurizer)])
    for _ in range(3):
        await setup.ask("large_llm")
        await setup.events()
        learner.catch_up()
    assert setup.bandit.arms["small_llm"].evidence == (3, 3 if examples else 0)
    setup.route_to("large_llm")  # without a doubt
    asked = len(setup.llms["small_llm"].prompts)
    answer = await setup.router.answer(build_request(setup.settings, text="a request"))
    await setup.events()
    assert len(setup.llms["small_llm"].prompts) - asked == (answer.llm == "small_llm")
    assert setup.counts.given_up == []


THREE = tuple(
    LLMSettings(chat_template="echolm", name=name, cost=cost, takes_examples=cost < 2)
    for name, cost in (("a", 1.0), ("b", 2.0), ("c", 3.0))
)


async def test_of_several_new_llms_one_is_asked_at_a_time() -> None:
    judge = FakeJudge({"by a": 0.5, "by b": 0.5}, scale="preference")
    setup = Setup(judge, warm_up=1000, llms=THREE, max_concurrent=1000)
    for _ in range(60):
        await setup.ask("c")
    events = [event.body for event in await setup.events()]
    asked = [e[e["judging"]["asked"][0]] for e in events]
    by_a, by_b = ([e for e in asked if e["llm"] == name] for name in "ab")
    assert len(by_a) / 2 + len(by_b) == 60  # to b, which takes no examples, it is one request
    assert 15 < len(by_b) < 45
    assert {e["propensity"] for e in asked} == {0.5}
    assert {bool(e["example_ids"]) for e in by_a} == {True, False}
    assert {(bool(e["example_ids"]), e["context"][1]) for e in by_b} == {(False, 1.0)}
    assert len(setup.llms["c"].prompts) == 60


async def test_beside_an_llm_that_is_known_a_new_one_is_asked() -> None:
    setup = Setup(FakeJudge({"by b": 0.0}, scale="preference"), warm_up=2, llms=THREE)
    for has_examples in (0.0, 1.0):
        x = np.zeros(setup.bandit.arms["a"].prior.mean.shape, dtype=np.float32)
        x[:2] = 1.0 - has_examples, has_examples
        for _ in range(300):
            for llm, score in (("a", 1.0), ("c", 0.0)):
                setup.bandit.learn(llm, x, score)
    setup.bandit._floor = 0.0
    await setup.ask("a")
    [event] = await setup.events()
    assert (event.body["better"]["llm"], event.body["worse"]["llm"]) == ("a", "b")


@pytest.mark.parametrize("scale", ["absolute", "agreement"])
async def test_judges_that_rate_rate_what_was_asked_beside(scale: Any) -> None:
    judge = FakeJudge({"by small_llm": 0.7, "by large_llm": 0.9}, scale=scale)
    setup = Setup(judge, warm_up=6)
    await setup.ask("large_llm")
    events = [event.body for event in await setup.events()]
    small = [e for e in events if e["llm"] == "small_llm"]
    assert [e["score"] for e in small] == [0.7, 0.7]
    assert all(e["judging"]["asked"] and e["judging"]["reason"] == "shadow" for e in small)
    assert len(events) == (4 if scale == "absolute" else 2)


@pytest.mark.parametrize(
    "values",
    [{"cache_control": "no-store"}, {"llm": "large_llm"}, {"tenant": "private"}, TOOLS],
)
async def test_what_must_not_be_judged_is_not_shown_to_a_new_llm(values: dict[str, str]) -> None:
    setup = Setup(warm_up=6, exclude_tenants=["private"])
    await setup.ask("large_llm", **values)
    assert await setup.events() == []
    assert setup.llms["small_llm"].prompts == []


async def test_shadows_are_skipped_and_not_queued_while_the_llms_are_busy() -> None:
    setup = Setup(warm_up=6, max_concurrent=3, max_in_flight_llm_requests=3)
    setup.llms["small_llm"].delay_s = 0.2
    serving = setup.load.serving
    with serving("small_llm"), serving("large_llm"), serving("large_llm"), serving("large_llm"):
        await setup.ask("large_llm")
    assert setup.counts.results == [("fake", "load")] * 2
    for _ in range(2):
        await setup.ask("large_llm")
    assert setup.counts.results[2:] == [("fake", "busy")]
    await setup.events()
    assert setup.counts.results[3:] == [("fake", "rated")] * 3
    assert len(setup.llms["small_llm"].prompts) == 3


async def test_by_default_the_llms_may_be_as_busy_as_they_can_serve() -> None:
    llms = tuple(llm.model_copy(update={"capacity": 2.0}) for llm in Settings().llms)
    setup = Setup(llms=llms)
    serving = setup.load.serving
    with serving("large_llm"), serving("large_llm"), serving("large_llm"), serving("large_llm"):
        await setup.ask("small_llm")
        with serving("small_llm"):
            await setup.ask("small_llm")
    await setup.events()
    assert sorted(setup.counts.results) == [("fake", "load"), ("fake", "rated")]


async def test_a_judge_that_cannot_decide_ends_the_warm_up() -> None:
    setup = Setup(FakeJudge({}, scale="preference"), warm_up=60)
    for _ in range(LEAST_CASES // 2):
        assert setup.counts.given_up == []
        await setup.ask("large_llm")
        assert await setup.events() == []
    assert setup.counts.given_up == ["no_preference"] * 2
    assert len(setup.llms["small_llm"].prompts) == LEAST_CASES
    setup.route_to("small_llm")
    answer = await setup.router.answer(build_request(setup.settings, text="a request"))
    assert answer.llm == "small_llm"


async def test_an_llm_that_fails_beside_harms_no_answer() -> None:
    setup = Setup(warm_up=6)
    setup.llms["small_llm"].error = UnavailableError("down")
    assert (await setup.ask("large_llm")).degraded == ""
    assert await setup.events() == []
    assert setup.counts.results == [("fake", "failed")] * 2
    assert setup.counts.given_up == []


# Cost


async def test_the_cost_is_counted_once_and_logged() -> None:
    setup = Setup()
    await setup.ask("small_llm")
    first, second = (e.body["judging"] for e in await setup.events())
    prompt = setup.llms["large_llm"].prompts[0]
    spent = len(prompt.split()) + len(["by", "large_llm"]) + 2 * setup.judge.tokens
    assert (first["tokens"], second["tokens"], second["seconds"]) == (spent, 0, 0)
    assert setup.counts.results == [("fake", "rated")]
    assert setup.counts.reasons == ["random"]
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
        TOOLS,
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


def drawn(sampler: Sampler, solicited: list[bool]) -> list[Reason | None]:
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
    assert drawn(sampler, [False] * 10_000) == [None] * 10_000
    assert drawn(sampler, [True] * 20).count("solicited") == 11


def test_nothing_and_everything() -> None:
    assert drawn(Sampler(0.0, 0.5, random.Random(0)), [True] * 100) == [None] * 100
    assert drawn(Sampler(1.0, 0.0, random.Random(0)), [False] * 9) == ["random"] * 9
    assert drawn(Sampler(1.0, 1.0, random.Random(0)), [True] * 9) == ["solicited"] * 9
