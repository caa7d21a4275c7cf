"""A request's way with fakes for retrieval and LLMs: every part may fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from echolm.bandit.features import DIMENSION, HAS_EXAMPLES
from echolm.conversation import Turn, transcript
from echolm.errors import ContextLengthError, InvalidRequestError, UnavailableError
from echolm.examples.admission import AdmissionPolicy
from echolm.learning.logistic import GaussianWeights
from echolm.learning.request_statistics import fit
from echolm.learning.tokens import FeedbackTokens
from echolm.llm.chat_template import ChatTemplate
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import (
    Answer,
    Interaction,
    Request,
    Retrieved,
    Selected,
)
from echolm.retrieval.features import EXAMPLE_FEATURES, REQUEST_FEATURES
from echolm.retrieval.record import NONE, RANK_FEATURES, SelectionRecord
from echolm.router.conversations import WarmConversations
from echolm.router.policy import Policy
from echolm.router.ports import Stage
from echolm.router.service import RouterService
from echolm.router.validation import build_request, is_searched
from echolm.router.warm_up import WarmUp
from echolm.settings import LLMSettings, Settings
from echolm.testing.front_door import FrontDoor
from echolm.testing.llm import FakeLLM, failing_llm
from echolm.wiring.llms import build_endpoints
from echolm.wiring.routing import build_bandit

EMBEDDING = np.full(8, 8**-0.5, dtype=np.float32)
EXAMPLES = (
    Selected(11, "past request", "past answer", 0.9, 0.8),
    Selected(12, "other request", "other answer", 0.8, 0.6),
)


@dataclass
class FakeRetriever:
    found: Retrieved | Exception = field(default_factory=lambda: Retrieved(EMBEDDING, EXAMPLES))
    asked: list[Request] = field(default_factory=list)

    async def retrieve(self, request: Request) -> Retrieved:
        self.asked.append(request)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found if request.use_examples else replace(self.found, examples=())


@dataclass
class FakeSink:
    submitted: list[Interaction] = field(default_factory=list)
    error: Exception | None = None

    async def submit(self, interaction: Interaction) -> None:
        if self.error is not None:
            raise self.error
        self.submitted.append(interaction)


@dataclass
class FakeMetrics:
    log: list[tuple[str, ...]] = field(default_factory=list)
    stages: list[tuple[str, str, float]] = field(default_factory=list)

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None:
        self.log.append(("answered", answer.llm, chosen))

    def took(self, stage: Stage, seconds: float, llm: str = "") -> None:
        self.stages.append((stage, llm, seconds))

    def conversation(self, result: str) -> None:
        self.log.append(("conversation", result))

    def degraded(self, part: str, reason: str) -> None:
        self.log.append(("degraded", part, reason))

    def failed(self, reason: str) -> None:
        self.log.append(("failed", reason))


class Setup:
    """A service over fakes, and a way to decide what the bandit chooses."""

    def __init__(self, settings: Settings | None = None, prefix_price: float = 0.0) -> None:
        self.settings = settings or Settings()
        conversations = WarmConversations(prefix_price)
        self.llms = {llm.name: FakeLLM(reply=self._reply(llm.name)) for llm in self.settings.llms}
        self.retriever, self.sink, self.metrics = FakeRetriever(), FakeSink(), FakeMetrics()
        self.load = LoadTracker()
        self.featurizer, self.bandit = build_bandit(self.settings)
        self.bias = LoadBias(self.settings.routing, self.settings.llms, self.load)
        rng = np.random.default_rng(1)
        self.policy = Policy(
            self.featurizer, self.bandit, self.bias, rng, conversations=conversations
        )
        self.tokens = FeedbackTokens("key", 60)
        self.service = RouterService(
            settings=self.settings,
            endpoints=build_endpoints(self.settings, self.llms),
            policy=self.policy,
            tokens=self.tokens,
            sink=self.sink,
            load=self.load,
            metrics=self.metrics,
            conversations=conversations,
        )
        self.front_door = FrontDoor(self.service, self.retriever)

    @staticmethod
    def _reply(name: str) -> Any:
        return lambda prompt: f"answer of {name}"

    def prefer(self, name: str) -> None:
        """Teach the bandit until it is sure that this LLM is the best."""
        rng = np.random.default_rng(0)
        for _ in range(300):
            x = rng.normal(0, 1, DIMENSION)
            x[HAS_EXAMPLES] = rng.integers(2)  # it is the best in either case
            x[0] = 1 - x[HAS_EXAMPLES]
            for arm in self.bandit.arms:
                self.bandit.learn(arm, x, 1.0 if arm == name else 0.0)
        self.bandit._floor = 0.0

    async def ask(self, text: str = "a request", **values: Any) -> Answer:
        return await self.front_door.answer(build_request(self.settings, text=text, **values))

    async def stream(self, **values: Any) -> tuple[list[str], Answer]:
        pieces: list[str] = []
        request = build_request(self.settings, text="a request", **values)
        answer = await self.front_door.answer(request, pieces.append)
        return pieces, answer

    async def submitted(self) -> list[Interaction]:
        while self.service.background:
            await asyncio.gather(*self.service.background)
        return self.sink.submitted


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_the_small_llm_gets_examples_the_large_one_none(setup: Setup) -> None:
    small = await setup.ask(llm="small_llm")
    assert setup.llms["small_llm"].prompts == [
        "<|user|>past request<|assistant|>past answer<|end|>"
        "<|user|>other request<|assistant|>other answer<|end|>"
        "<|user|>a request<|assistant|>"
    ]
    assert (small.llm, small.example_ids, small.text) == (
        "small_llm",
        (11, 12),
        "answer of small_llm",
    )
    large = await setup.ask(llm="large_llm", system_prompt="be brief")
    assert setup.llms["large_llm"].prompts == [
        "<|system|>be brief<|end|><|user|>a request<|assistant|>"
    ]
    assert (large.llm, large.example_ids) == ("large_llm", ())
    assert small.degraded == large.degraded == ""


async def test_the_bandits_choice_answers(setup: Setup) -> None:
    for name in ("small_llm", "large_llm"):
        setup.prefer(name)
        answer = await setup.ask()
        assert answer.llm == name
        assert setup.metrics.log[-1] == ("answered", name, name)


def related(rng: np.random.Generator, n: int, cosine: float | None) -> list[Any]:
    """Embeddings of n requests with this cosine between any two, about; None: there are none."""
    if cosine is None:
        return [None] * n
    topic, own = rng.normal(0, 384**-0.5, 384), rng.normal(0, 384**-0.5, (n, 384))
    mixed = cosine**0.5 * topic + (1 - cosine) ** 0.5 * own
    return list((mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize(
    ("cosine", "text"),
    [
        pytest.param(None, "a" * 89, id="no-embedding"),
        pytest.param(None, "a" * 500, id="no-embedding-500-characters"),
        pytest.param(None, "a" * 4000, id="no-embedding-4000-characters"),
        pytest.param(0.0, "a" * 89, id="unrelated-requests"),
        pytest.param(0.5, "a" * 89, id="cosine-0.5"),
        pytest.param(1.0, "a" * 89, id="the-same-request"),
    ],
)
def test_poor_answers_without_examples_say_nothing_of_those_with_relevant_ones(
    cosine: float | None, text: str
) -> None:
    """60 ratings of 0 for the small LLM without examples, 20 of 1 for the large one."""
    examples = [Selected(i, text, "past answer", 0.8, 0.8) for i in (1, 2)]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        embeddings = related(rng, 81, cosine)
        featurizer, bandit = build_bandit(Settings())
        for embedding in embeddings[:60]:
            bandit.learn("small_llm", featurizer(text, embedding, []), 0.0)
        for embedding in embeddings[60:80]:
            bandit.learn("large_llm", featurizer(text, embedding, []), 1.0)
        contexts = [featurizer(text, embeddings[80], e) for e in (examples, [])]
        small = [bandit.choose(x, {}, rng).probabilities["small_llm"] for x in contexts]
        assert small[0] > 0.03  # it is tried
        assert small[1] < 0.01


async def test_the_answer_carries_what_learning_needs(setup: Setup) -> None:
    setup.prefer("small_llm")
    answer = await setup.ask(tenant="acme")
    decision = setup.tokens.load(answer.feedback_token)
    assert (decision.llm, decision.tenant, decision.example_ids) == ("small_llm", "acme", (11, 12))
    assert decision.propensity == pytest.approx(1.0, abs=1e-3)
    expected = setup.featurizer("a request", EMBEDDING, EXAMPLES)
    assert decision.context == pytest.approx(expected, abs=1e-2)
    other = setup.tokens.load((await setup.ask(tenant="acme")).feedback_token)
    assert other.request_id != decision.request_id


@pytest.mark.parametrize("found", [EXAMPLES, ()])
async def test_a_token_says_why_a_rating_is_asked_for_and_how_probable_that_was(
    found: tuple[Selected, ...],
) -> None:
    setup = Setup(Settings(routing={"solicit_share": 0.3}))
    setup.retriever.found = Retrieved(EMBEDDING, found)
    answers = [await setup.ask() for _ in range(200)]
    decisions = [setup.tokens.load(answer.feedback_token) for answer in answers]
    assert [bool(d.solicited) for d in decisions] == [a.solicit_feedback for a in answers]
    assert {d.solicited for d in decisions} == {"", "random", "value"}
    assert all(0.0 < d.solicit_probability <= 1.0 for d in decisions)
    assert all(d.solicit_probability == 1.0 for d in decisions if d.solicited == "value")
    assert all(d.solicit_probability < 1.0 for d in decisions if not d.solicited)


async def test_nobody_is_asked_about_an_llm_of_their_own_choice() -> None:
    setup = Setup(Settings(routing={"solicit_share": 1.0}))
    answer = await setup.ask(llm="small_llm")
    assert answer.solicit_feedback is False
    decision = setup.tokens.load(answer.feedback_token)
    assert (decision.solicited, decision.solicit_probability) == ("", 0.0)


# Degradation


async def test_a_failing_retriever_costs_the_examples_only(setup: Setup) -> None:
    setup.retriever.found, reason = UnavailableError("Milvus is away"), "retrieval unavailable"
    answer = await setup.ask(llm="small_llm")
    assert answer.text == "answer of small_llm"
    assert answer.example_ids == ()
    assert answer.degraded == f"no examples: {reason}"
    assert ("degraded", "retrieval", reason.replace(" ", "_")) in setup.metrics.log
    await setup.ask(llm="large_llm")
    assert await setup.submitted() == []  # without an embedding there is nothing to store


async def test_an_outage_of_the_store_is_reported_and_the_answer_still_stored(setup: Setup) -> None:
    setup.retriever.found = Retrieved(EMBEDDING, (), degraded="example store unavailable")
    answer = await setup.ask(llm="large_llm")
    assert answer.degraded == "no examples: example store unavailable"
    assert len(await setup.submitted()) == 1


async def test_a_failing_bandit_leaves_the_default_llm(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.prefer("small_llm")

    def broken(*args: object) -> None:
        raise ValueError("probabilities contain NaN")

    monkeypatch.setattr(setup.bandit, "choose_many", broken)
    answer = await setup.ask()
    assert answer.llm == "large_llm"
    assert answer.degraded == "routing failed: default LLM"
    assert ("degraded", "routing", "failed") in setup.metrics.log
    assert answer.feedback_token


@pytest.mark.parametrize("llm", ["auto", "small_llm"])
async def test_a_router_whose_state_is_lost_still_answers(setup: Setup, llm: str) -> None:
    for arm in setup.bandit.arms.values():
        arm.weights = GaussianWeights(np.zeros(3), np.eye(3))  # predictions raise, forced ones too
    answer = await setup.ask(llm=llm)
    assert answer.llm == ("large_llm" if llm == "auto" else llm)
    assert answer.degraded.startswith("routing failed")
    setup.tokens.load(answer.feedback_token)


def adopt_statistics(setup: Setup) -> None:
    sample = np.random.default_rng(0).normal(size=(50, len(EMBEDDING))).astype(np.float32)
    setup.featurizer.adopt(fit(sample, np.zeros(0, np.float32), 1))


async def test_an_embedding_that_is_not_a_number_does_not_stop_the_answer(setup: Setup) -> None:
    adopt_statistics(setup)
    setup.retriever.found = Retrieved(EMBEDDING * np.float32("nan"), ())
    assert (await setup.ask()).degraded == "routing failed: default LLM"


async def test_one_request_that_cannot_be_decided_leaves_the_others_their_router(
    setup: Setup,
) -> None:
    adopt_statistics(setup)
    setup.prefer("small_llm")
    requests = [build_request(setup.settings, text=f"request {k}") for k in range(8)]
    bad = EMBEDDING * np.float32("nan")
    found = [Retrieved(bad if k == 3 else EMBEDDING, ()) for k in range(8)]
    plans = setup.service.plan(list(zip(requests, found, strict=True)))
    assert [k for k, plan in enumerate(plans) if plan.degraded] == [3]


ASKS: dict[str, Any] = {"repetition_penalty": 1.5}


async def test_only_llms_that_can_take_what_is_asked_for_are_drawn(setup: Setup) -> None:
    setup.prefer("small_llm")
    setup.llms["small_llm"].cannot_take = ("repetition_penalty",)
    answer = await setup.ask(**ASKS)
    assert (answer.llm, answer.degraded) == ("large_llm", "")
    decision = setup.tokens.load(answer.feedback_token)
    assert (decision.propensity, decision.solicited) == (1.0, "")
    assert setup.llms["large_llm"].samplings[-1].repetition_penalty == 1.5
    assert (await setup.ask()).llm == "small_llm"


async def test_in_a_batch_each_request_is_drawn_for_by_what_it_asks_for(setup: Setup) -> None:
    setup.prefer("small_llm")
    setup.llms["small_llm"].cannot_take = ("repetition_penalty",)
    asks = [build_request(setup.settings, text=f"request {k}", **ASKS) for k in range(4)]
    plain = [build_request(setup.settings, text=f"request {k}") for k in range(4)]
    mixed = [request for pair in zip(asks, plain, strict=True) for request in pair]
    plans = setup.service.plan([(request, Retrieved(EMBEDDING, ())) for request in mixed])
    assert [plan.llm for plan in plans] == ["large_llm", "small_llm"] * 4
    assert {setup.tokens.load(plan.feedback_token).propensity for plan in plans[::2]} == {1.0}


async def test_the_warm_up_does_not_keep_the_only_llm_away_that_can_take_a_request(
    setup: Setup,
) -> None:
    warm_up = WarmUp(setup.bandit, "large_llm", 10)
    setup.policy._warm_up = warm_up
    assert (await setup.ask()).llm == "large_llm"
    setup.llms["large_llm"].cannot_take = ("repetition_penalty",)
    assert (await setup.ask(**ASKS)).llm == "small_llm"


async def test_what_no_llm_can_take_is_refused_by_its_name(setup: Setup) -> None:
    for llm in setup.llms.values():
        llm.cannot_take = ("bad_words",)
    with pytest.raises(InvalidRequestError, match="bad_words: expected nothing, since no LLM here"):
        await setup.ask(bad_words=["no"], **ASKS)
    assert (await setup.ask(**ASKS)).degraded == ""


async def test_what_no_single_llm_can_take_all_of_is_refused(setup: Setup) -> None:
    setup.llms["small_llm"].cannot_take = ("bad_words",)
    setup.llms["large_llm"].cannot_take = ("repetition_penalty",)
    with pytest.raises(InvalidRequestError, match="no LLM here can take it"):
        await setup.ask(bad_words=["no"], **ASKS)


async def test_the_llm_that_the_caller_names_must_take_it(setup: Setup) -> None:
    setup.llms["small_llm"].cannot_take = ("repetition_penalty",)
    with pytest.raises(
        InvalidRequestError, match=r"repetition_penalty: .*small_llm cannot take it"
    ):
        await setup.ask(llm="small_llm", **ASKS)
    assert (await setup.ask(llm="large_llm", **ASKS)).llm == "large_llm"


async def test_no_llm_stands_in_that_cannot_take_the_request(setup: Setup) -> None:
    setup.prefer("small_llm")
    setup.llms["small_llm"].error = UnavailableError("down")
    setup.llms["large_llm"].cannot_take = ("repetition_penalty",)
    with pytest.raises(UnavailableError, match="no LLM answered: small_llm unavailable"):
        await setup.ask(**ASKS)
    assert not setup.llms["large_llm"].prompts


async def test_without_a_working_router_an_llm_answers_that_can_take_the_request(
    setup: Setup,
) -> None:
    adopt_statistics(setup)
    setup.retriever.found = Retrieved(EMBEDDING * np.float32("nan"), ())
    default = setup.settings.default_llm.name
    setup.llms[default].cannot_take = ("repetition_penalty",)
    answer = await setup.ask(**ASKS)
    assert answer.degraded == "routing failed: default LLM"
    assert answer.llm != default


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnavailableError("down"), "unavailable"),
        (asyncio.TimeoutError(), "timeout"),
        (ContextLengthError("too long"), "refused"),
    ],
)
async def test_the_other_llm_answers_for_one_that_is_down(
    setup: Setup, error: Exception, reason: str
) -> None:
    setup.prefer("small_llm")
    setup.llms["small_llm"].error = error
    answer = await setup.ask()
    assert (answer.llm, answer.text) == ("large_llm", "answer of large_llm")
    assert answer.degraded.startswith("small_llm ")
    assert setup.metrics.log == [
        ("degraded", "small_llm", reason),
        ("answered", "large_llm", "small_llm"),
    ]
    decision = setup.tokens.load(answer.feedback_token)
    assert (decision.llm, decision.propensity) == ("large_llm", 1.0)


async def test_the_small_llm_gets_examples_when_it_stands_in(setup: Setup) -> None:
    setup.llms["large_llm"].error = UnavailableError("down")
    answer = await setup.ask(llm="large_llm")
    assert (answer.llm, answer.example_ids) == ("small_llm", (11, 12))
    assert answer.degraded == "large_llm unavailable"


async def test_an_llm_that_takes_too_long_has_failed() -> None:
    setup = Setup(Settings(limits={"request_timeout_s": 0.05}))
    setup.llms["small_llm"].delay_s = 60
    answer = await setup.ask(llm="small_llm")
    assert (answer.llm, answer.degraded) == ("large_llm", "small_llm unavailable")
    assert len(setup.llms["small_llm"].cancelled) == 1


async def test_only_when_no_llm_answers_is_there_an_error(setup: Setup) -> None:
    for llm in setup.llms.values():
        llm.error = UnavailableError("down")
    with pytest.raises(
        UnavailableError, match=r"no LLM answered: \w+ unavailable; \w+ unavailable"
    ):
        await setup.ask()
    assert setup.metrics.log[-1] == ("failed", "no_llm")
    assert all(len(llm.prompts) == 1 for llm in setup.llms.values())
    assert setup.load.in_flight("small_llm") == setup.load.in_flight("large_llm") == 0


async def test_a_prompt_too_long_for_one_llm_goes_to_another(setup: Setup) -> None:
    setup.llms["small_llm"].error = ContextLengthError("prompt: expected at most 10 tokens")
    answer = await setup.ask(llm="small_llm")
    assert (answer.llm, answer.degraded) == ("large_llm", "small_llm refused the request")


async def test_a_request_that_every_llm_refuses_is_invalid(setup: Setup) -> None:
    for name, llm in setup.llms.items():
        llm.error = ContextLengthError(f"prompt: too long for {name}")
    with pytest.raises(InvalidRequestError, match="too long for small_llm"):
        await setup.ask(llm="small_llm")
    assert setup.metrics.log[-1] == ("failed", "invalid")


NO_GREETING = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('begin with a user') }}{% endif %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
)


def greeted(setup: Setup, **values: Any) -> Request:
    """A request after an assistant's greeting, in front of which no examples are put."""
    values = {"text": "hi", "cache_control": "no-examples", **values}
    history = (Turn("assistant", "How can I help?"),)
    return replace(build_request(setup.settings, **values), history=history)


def with_chat_template(setup: Setup, *names: str) -> None:
    """Give LLMs a chat template that refuses conversations which an assistant begins."""
    template = ChatTemplate({"default": NO_GREETING})
    setup.service.endpoints = {
        name: replace(endpoint, template=template) if name in names else endpoint
        for name, endpoint in setup.service.endpoints.items()
    }


async def test_a_conversation_that_a_chat_template_refuses_goes_to_another_llm(
    setup: Setup,
) -> None:
    with_chat_template(setup, "small_llm")
    answer = await setup.front_door.answer(greeted(setup, llm="small_llm"))
    assert (answer.llm, answer.degraded) == ("large_llm", "small_llm refused the request")
    assert setup.metrics.log[0] == ("degraded", "small_llm", "refused")
    assert setup.load.in_flight("small_llm") == setup.load.in_flight("large_llm") == 0


async def test_a_conversation_that_no_chat_template_takes_is_refused_and_others_are_not(
    setup: Setup,
) -> None:
    with_chat_template(setup, "small_llm", "large_llm")
    requests = [build_request(setup.settings, text=f"request {k}") for k in range(3)]
    requests[1] = greeted(setup)
    plans = setup.service.plan([(request, Retrieved()) for request in requests])
    assert [isinstance(plan, Exception) for plan in plans] == [False, True, False]
    with pytest.raises(InvalidRequestError, match=r"messages: expected .*got begin with a user"):
        await setup.front_door.answer(requests[1])
    assert setup.metrics.log[-1] == ("failed", "invalid")
    assert setup.service.in_flight == 2


async def test_the_chat_template_of_a_stand_in_counts_too(setup: Setup) -> None:
    with_chat_template(setup, "large_llm")
    setup.llms["small_llm"].error = UnavailableError("down")
    with pytest.raises(InvalidRequestError, match="begin with a user"):
        await setup.front_door.answer(greeted(setup, llm="small_llm"))
    assert setup.service.in_flight == 0


async def test_a_refusal_counts_more_than_an_outage(setup: Setup) -> None:
    setup.llms["small_llm"].error = ContextLengthError("prompt: too long")
    setup.llms["large_llm"].error = UnavailableError("down")
    with pytest.raises(ContextLengthError):
        await setup.ask(llm="small_llm")


# Streaming


async def test_a_stream_brings_the_text_in_pieces(setup: Setup) -> None:
    pieces, answer = await setup.stream(llm="large_llm")
    assert pieces == ["answer", " of", " large_llm"]
    assert answer.text == "answer of large_llm"


async def test_the_parts_of_a_requests_time_are_measured(setup: Setup) -> None:
    times = iter(range(1_000))
    setup.service.clock = lambda: float(next(times))  # each look at the clock takes a second
    setup.llms["small_llm"].error = UnavailableError("died")
    setup.prefer("small_llm")
    await setup.stream()
    assert [(stage, llm) for stage, llm, _ in setup.metrics.stages] == [
        ("decision", ""),
        ("selection", ""),
        ("first_token", "large_llm"),
        ("generation", "large_llm"),
    ]
    seconds = {stage: seconds for stage, _, seconds in setup.metrics.stages}
    # The first piece is timed from the request on, the generation from its own beginning.
    assert seconds["first_token"] > seconds["generation"] > seconds["decision"] == 1.0
    assert seconds["selection"] > seconds["decision"]


async def test_no_first_token_is_measured_without_a_stream(setup: Setup) -> None:
    await setup.ask()
    assert {stage for stage, _, _ in setup.metrics.stages} == {
        "selection",
        "decision",
        "generation",
    }


async def test_a_stream_that_breaks_is_an_error_and_no_second_answer(setup: Setup) -> None:
    setup.llms["small_llm"].error = UnavailableError("died")
    setup.llms["small_llm"].fail_after = 2
    pieces: list[str] = []
    request = build_request(setup.settings, text="a request", llm="small_llm")
    with pytest.raises(UnavailableError, match="small_llm failed after part of the answer"):
        await setup.front_door.answer(request, pieces.append)
    assert pieces == ["answer", " of"]
    assert setup.llms["large_llm"].prompts == []
    assert setup.metrics.log[-1] == ("failed", "stream_broken")


async def test_a_stream_that_never_began_may_come_from_another_llm(setup: Setup) -> None:
    setup.llms["small_llm"].error = UnavailableError("died")
    pieces, answer = await setup.stream(llm="small_llm")
    assert "".join(pieces) == answer.text == "answer of large_llm"


# Cancellation and load


async def test_cancelling_a_request_cancels_the_generation_only_there(setup: Setup) -> None:
    setup.llms["large_llm"].delay_s = 60
    task = asyncio.create_task(setup.ask(llm="large_llm"))
    while setup.load.in_flight("large_llm") == 0:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(setup.llms["large_llm"].cancelled) == 1
    assert setup.llms["small_llm"].prompts == []  # no other LLM is tried
    assert setup.load.in_flight("large_llm") == 0


async def test_requests_do_not_wait_for_each_other(setup: Setup) -> None:
    setup.llms["large_llm"].delay_s = 0.2
    answers = await asyncio.wait_for(
        asyncio.gather(*(setup.ask(f"request {i}", llm="large_llm") for i in range(200))), 15
    )
    assert len(answers) == 200
    assert len({setup.tokens.load(a.feedback_token).request_id for a in answers}) == 200


async def test_load_moves_requests_off_the_strongest_llm(setup: Setup) -> None:
    request = build_request(setup.settings, text="a request")
    asked = [(request, Retrieved(EMBEDDING, ()))]
    [(_, calm)] = setup.policy.decide(asked)
    overload = LoadTracker(half_life_s=1e-6)
    setup.policy._bias = LoadBias(
        Settings(routing={"load_bias": 2.0}).routing, setup.settings.llms, overload
    )
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(overload.serving("large_llm"))
        [(_, loaded)] = setup.policy.decide(asked)
    assert calm.probabilities["large_llm"] > 0.5
    assert loaded.probabilities["large_llm"] < 0.1


async def test_a_token_names_the_llms_revision() -> None:
    llms = (
        LLMSettings(chat_template="echolm", name="a", cost=1, takes_examples=False, revision="2"),
        LLMSettings(chat_template="echolm", name="b", cost=2, takes_examples=False),
    )
    setup = Setup(Settings(llms=llms))
    tokens = [(await setup.ask(llm=name)).feedback_token for name in ("a", "b")]
    assert [setup.tokens.load(token).revision for token in tokens] == ["2", ""]


def test_a_prior_of_more_ratings_is_narrower() -> None:
    def std(**values: Any) -> float:
        llm = LLMSettings(chat_template="echolm", name="a", cost=1, takes_examples=False, **values)
        featurizer, bandit = build_bandit(Settings(llms=(llm,)))
        return bandit.arms["a"].predict(featurizer("t" * 147, None, []))[1]

    assert std() > 2 * std(prior_ratings=50)
    assert std(prior_ratings=3) == pytest.approx(std())


# What a caller may forbid


async def test_no_examples_means_none_in_the_prompt(setup: Setup) -> None:
    answer = await setup.ask(llm="small_llm", cache_control="no-examples")
    assert answer.example_ids == ()
    assert setup.llms["small_llm"].prompts == ["<|user|>a request<|assistant|>"]
    assert answer.degraded == ""


@pytest.mark.parametrize(
    ("control", "stored"),
    [("default", 1), ("no-examples", 1), ("no-store", 0), ("no-cache", 0)],
)
async def test_no_store_means_nothing_is_submitted(setup: Setup, control: str, stored: int) -> None:
    await setup.ask(llm="large_llm", cache_control=control)
    assert len(await setup.submitted()) == stored


@pytest.mark.parametrize(
    ("values", "searched"),
    [
        ({"llm": "large_llm", "cache_control": "no-store"}, False),
        ({"llm": "large_llm"}, True),
        ({"llm": "small_llm", "cache_control": "no-examples"}, False),
        ({"llm": "small_llm"}, True),
        ({"cache_control": "no-examples"}, False),
        ({}, True),
    ],
)
def test_nothing_is_searched_that_would_not_be_used(
    setup: Setup, values: dict[str, str], searched: bool
) -> None:
    request = build_request(setup.settings, text="a request", **values)
    assert is_searched(setup.settings, request) is searched


async def test_an_interaction_of_a_source_llm_is_submitted_as_it_was(setup: Setup) -> None:
    answer = await setup.ask(llm="large_llm", tenant="acme", system_prompt="rules")
    [interaction] = await setup.submitted()
    assert (interaction.request, interaction.response) == ("a request", answer.text)
    assert (interaction.tenant, interaction.system_prompt) == ("acme", "rules")
    assert (interaction.llm, interaction.finish_reason) == ("large_llm", "stop")
    assert interaction.embedding is EMBEDDING
    assert AdmissionPolicy(setup.settings).judge(interaction).admitted


async def test_answers_of_other_llms_are_not_submitted(setup: Setup) -> None:
    await setup.ask(llm="small_llm")
    setup.llms["large_llm"].error = UnavailableError("down")
    assert (await setup.ask(llm="large_llm")).llm == "small_llm"
    assert await setup.submitted() == []


async def test_a_truncated_answer_does_not_become_an_example(setup: Setup) -> None:
    setup.llms["large_llm"].finish_reason = "length"
    await setup.ask(llm="large_llm")
    judged = [AdmissionPolicy(setup.settings).judge(e) for e in await setup.submitted()]
    assert not any(j.admitted for j in judged)


async def test_examples_can_be_switched_off() -> None:
    setup = Setup(Settings(examples={"enabled": False}))
    await setup.ask(llm="large_llm")
    assert await setup.submitted() == []


async def test_a_failing_example_manager_is_counted_and_harms_no_answer(setup: Setup) -> None:
    setup.sink.error = UnavailableError("down")
    assert (await setup.ask(llm="large_llm")).degraded == ""
    await setup.submitted()
    assert ("degraded", "example_manager", "unavailable") in setup.metrics.log


# The prompt's length


def short_context(tokens: int) -> Setup:
    llms: Sequence[LLMSettings] = (
        LLMSettings(
            chat_template="echolm",
            name="small_llm",
            cost=0.1,
            takes_examples=True,
            context_length=tokens,
        ),
        LLMSettings(
            chat_template="echolm",
            name="large_llm",
            cost=1,
            takes_examples=False,
            context_length=tokens,
        ),
    )
    return Setup(Settings(llms=tuple(llms)))


async def test_examples_that_do_not_fit_beside_the_answer_are_dropped_least_useful_first() -> None:
    text = "a request"
    full = Setup()
    await full.ask(text, llm="small_llm")
    count = full.service.endpoints["small_llm"].tokens.count(full.llms["small_llm"].prompts[0])
    setup = short_context(count + 100)
    assert (await setup.ask(text, llm="small_llm", max_tokens=100)).example_ids == (11, 12)
    setup = short_context(count + 100 - 1)
    assert (await setup.ask(text, llm="small_llm", max_tokens=100)).example_ids == (11,)
    setup = short_context(130)
    answer = await setup.ask(text, llm="small_llm", max_tokens=125)
    assert answer.example_ids == ()
    assert setup.llms["small_llm"].prompts == ["<|user|>a request<|assistant|>"]


async def test_several_llms_are_tried_default_first_then_the_strongest() -> None:
    llms = tuple(
        LLMSettings(chat_template="echolm", name=name, cost=cost, takes_examples=False)
        for name, cost in (("a", 1.0), ("b", 3.0), ("c", 2.0), ("d", 4.0))
    )
    setup = Setup(Settings(llms=llms, routing={"default_llm": "c"}))
    for name in ("a", "c", "d"):
        setup.service.endpoints[name].client.__dict__.update(failing_llm().__dict__)
    answer = await setup.ask(llm="a")
    assert answer.llm == "b"
    assert answer.degraded == "a unavailable; c unavailable; d unavailable"


def turn_after(answer: str, asked: str = "a request") -> dict[str, Any]:
    """The next request of a conversation in which this was answered."""
    said = [("user", asked), ("assistant", answer), ("user", "and then?")]
    messages = [{"role": role, "content": content} for role, content in said]
    return {"text": None, "messages": json.dumps(messages)}


async def test_a_conversation_is_stored_with_what_came_before() -> None:
    setup = Setup()
    await setup.ask(**turn_after("b"), llm="large_llm")
    [interaction] = await setup.submitted()
    turns = [Turn("user", "a request"), Turn("assistant", "b"), Turn("user", "and then?")]
    assert interaction.request == transcript(turns)


async def test_a_conversation_stays_with_its_llm_unless_another_is_worth_its_prefix() -> None:
    setup = Setup(prefix_price=1_000.0)
    asked = "a request " * 20
    first = await setup.ask(asked, llm="small_llm")
    setup.prefer("large_llm")
    assert (await setup.ask(asked)).llm == "large_llm"
    following = await setup.ask(**turn_after(first.text, asked))
    assert following.llm == "small_llm"
    decision = setup.tokens.load(following.feedback_token)
    assert decision.propensity == pytest.approx(1.0)
    elsewhere = await setup.ask(**turn_after("what nobody has answered", asked))
    assert elsewhere.llm == "large_llm"
    assert [entry for entry in setup.metrics.log if entry[0] == "conversation"] == [
        ("conversation", "stayed")
    ]
    await setup.ask(**turn_after(first.text, asked), llm="large_llm")
    assert setup.metrics.log[-1] == ("conversation", "moved")


TOOLS = json.dumps([{"type": "function", "function": {"name": "weather"}}])


async def test_tools_are_for_llms_that_can_take_them() -> None:
    setup = Setup()
    setup.prefer("small_llm")
    setup.llms["small_llm"].cannot_take = ("tools", "tool_choice", "logprobs")
    answer = await setup.ask(tools=TOOLS, tool_choice='"auto"')
    assert (answer.llm, answer.degraded) == ("large_llm", "")
    assert setup.tokens.load(answer.feedback_token).propensity == 1.0
    [sampling] = setup.llms["large_llm"].samplings
    assert (sampling.tools, sampling.tool_choice) == (TOOLS, '"auto"')
    assert (await setup.ask()).llm == "small_llm"


@pytest.mark.parametrize(
    ("inputs", "lacking", "told"),
    [
        ({"tools": TOOLS}, ("tools",), "tools: expected nothing, since no LLM here can take it"),
        ({"logprobs": 0}, ("logprobs",), "logprobs: .*, got 0; leave out logprobs"),
        (
            {"response_format": '{"type": "json_object"}'},
            ("guided_decoding_guide_type",),
            "response_format: .*; leave out response_format",
        ),
        (
            {"guided_decoding_guide_type": "json"},
            ("guided_decoding_guide_type",),
            "guided_decoding_guide_type: .*; leave out guided_decoding_guide_type",
        ),
    ],
)
async def test_what_no_llm_can_take_is_refused_as_the_caller_named_it(
    inputs: dict[str, Any], lacking: tuple[str, ...], told: str
) -> None:
    setup = Setup()
    for llm in setup.llms.values():
        llm.cannot_take = lacking
    with pytest.raises(InvalidRequestError, match=told):
        await setup.ask(**inputs)
    setup.llms["large_llm"].cannot_take = ()
    assert (await setup.ask(**inputs)).llm == "large_llm"
    with pytest.raises(InvalidRequestError, match="small_llm cannot take it"):
        await setup.ask(llm="small_llm", **inputs)


async def test_a_cost_weight_of_a_request_decides_and_is_no_matter_to_the_next() -> None:
    setup = Setup()
    setup.prefer("large_llm")
    answer = await setup.ask(cost_weight=10.0)
    assert answer.llm == "small_llm"
    assert setup.tokens.load(answer.feedback_token).propensity == 1.0
    assert (await setup.ask()).llm == "large_llm"
    assert (await setup.ask(cost_weight=0.0)).llm == "large_llm"


@pytest.mark.parametrize("weight", [None, 0.5])
async def test_by_another_price_nothing_is_learnt_of_the_number_of_examples(
    weight: float | None,
) -> None:
    features = np.zeros((0, len(EXAMPLE_FEATURES)), dtype=np.float32)
    request = np.zeros(len(REQUEST_FEATURES), dtype=np.float32)
    ranked = np.zeros((1, RANK_FEATURES), dtype=np.float32)
    record = SelectionRecord(request, (), features, (), NONE, count=1, ranked=ranked)
    setup = Setup()
    setup.retriever.found = Retrieved(EMBEDDING, selection=record.dump())
    answer = await setup.ask(cost_weight=weight)
    selection = setup.tokens.load(answer.feedback_token).selection
    assert SelectionRecord.load(selection).count == (1 if weight is None else None)
