"""Answers from the store: who gets them, and what they say."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from echolm.bandit.reuse import (
    CHECKED_SHARE,
    COMPARISON,
    Comparison,
    ReuseChoice,
    ReuseModel,
    context,
    describe,
)
from echolm.learning.event_log import Event
from echolm.learning.tokens import FeedbackTokens
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import (
    STORED,
    Answer,
    Interaction,
    Request,
    Retrieved,
    Reusable,
    Sampling,
    Served,
)
from echolm.retrieval.reuse import REUSE_FEATURES
from echolm.router.policy import Policy
from echolm.router.ports import NoMetrics
from echolm.router.service import RouterService
from echolm.router.stored import StoredAnswers, answer_key_of
from echolm.router.validation import build_request
from echolm.settings import Settings
from echolm.store.base import answer_key
from echolm.testing.front_door import FrontDoor
from echolm.testing.llm import FakeLLM, failing_llm
from echolm.wiring.llms import build_endpoints
from echolm.wiring.routing import build_bandit

EMBEDDING = np.full(8, 8**-0.5, dtype=np.float32)
FOUND = Reusable(7, "stored answer", True, np.eye(len(REUSE_FEATURES), dtype=np.float32)[0])


@dataclass
class Retriever:
    found: Retrieved | Exception = field(
        default_factory=lambda: Retrieved(EMBEDDING, reusable=FOUND)
    )

    async def retrieve(self, request: Request) -> Retrieved:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@dataclass
class Sink:
    submitted: list[Interaction] = field(default_factory=list)

    async def submit(self, interaction: Interaction) -> None:
        self.submitted.append(interaction)


@dataclass
class Seen:
    all: list[Served] = field(default_factory=list)

    def served(self, served: Served) -> None:
        self.all.append(served)


@dataclass
class Metrics(NoMetrics):
    actions: list[str] = field(default_factory=list)

    def reuse(self, action: str) -> None:
        self.actions.append(action)


@dataclass
class Draws:
    """Random numbers that are set; a check is drawn below its share."""

    value: float = 0.5

    def random(self) -> float:
        return self.value


class Setup:
    def __init__(self) -> None:
        self.settings = Settings()
        self.llms = {n: FakeLLM(reply=self._reply(n)) for n in ("small_llm", "large_llm")}
        self.retriever, self.sink, self.seen = Retriever(), Sink(), Seen()
        self.metrics, self.draws = Metrics(), Draws()
        self.model = ReuseModel(self.settings.routing.reuse_error)
        load = LoadTracker()
        featurizer, bandit = build_bandit(self.settings)
        bias = LoadBias(self.settings.routing, self.settings.llms, load)
        self.tokens = FeedbackTokens("key", 60)
        self.service = RouterService(
            self.settings,
            build_endpoints(self.settings, self.llms),
            Policy(featurizer, bandit, bias, np.random.default_rng(1)),
            self.tokens,
            self.sink,
            load,
            self.metrics,
            self.seen,
            stored=StoredAnswers(self.model, self.draws),  # type: ignore[arg-type]
        )
        self.front_door = FrontDoor(self.service, self.retriever)

    @staticmethod
    def _reply(name: str) -> Any:
        return lambda prompt: f"answer of {name}"

    async def ask(self, text: str = "a request", **values: Any) -> Answer:
        return await self.front_door.answer(build_request(self.settings, text=text, **values))

    @property
    def prompts(self) -> int:
        return sum(len(llm.prompts) for llm in self.llms.values())

    async def submitted(self) -> list[Interaction]:
        while self.service.background:
            await asyncio.gather(*self.service.background)
        return self.sink.submitted


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_a_stored_answer_is_given_and_says_so(setup: Setup) -> None:
    answer = await setup.ask()
    assert (answer.text, answer.llm, answer.example_ids) == ("stored answer", "stored", (7,))
    assert 0.99 < answer.predicted_quality <= 1.0
    assert (answer.finish_reason, answer.degraded) == ("stop", "")
    assert (answer.num_input_tokens, answer.num_output_tokens) == (0, 0)
    assert not answer.solicit_feedback
    assert setup.prompts == 0, "no LLM runs"
    assert await setup.submitted() == [], "it is stored already"
    assert setup.metrics.actions == ["give"]


async def test_it_streams_as_one_piece(setup: Setup) -> None:
    pieces: list[str] = []
    request = build_request(setup.settings, text="a request", stream=True)
    answer = await setup.front_door.answer(request, pieces.append)
    assert pieces == [answer.text] == ["stored answer"]


async def test_its_token_teaches_whether_it_was_right(setup: Setup) -> None:
    decision = setup.tokens.load((await setup.ask()).feedback_token)
    assert (decision.llm, decision.example_ids) == (STORED, (7,))
    assert decision.propensity == pytest.approx(1 - CHECKED_SHARE)
    np.testing.assert_array_equal(decision.context, context(FOUND))
    body = {**vars(decision), "context": decision.context.tolist(), "score": 0.0}
    setup.model.apply(Event("1", "rating", body, 1))
    assert (await setup.ask()).llm != STORED


async def test_what_was_found_wrong_is_not_given(setup: Setup) -> None:
    wrong = Comparison(FOUND.id, True, FOUND.features, same=False, right=False)
    setup.model.apply(Event("1", COMPARISON, describe([wrong]), 1))
    assert (await setup.ask()).llm != STORED
    assert setup.metrics.actions == ["leave"]


async def test_a_check_is_answered_by_the_strongest_llm(setup: Setup) -> None:
    setup.draws.value = 0.0
    answer = await setup.ask()
    assert (answer.text, answer.llm) == ("answer of large_llm", "large_llm")
    [served] = setup.seen.all
    assert served.check == CHECKED_SHARE
    # Nothing was drawn among the LLMs, and so off-policy estimates leave it out.
    assert served.decision.propensity == 1.0
    assert setup.metrics.actions == ["check"]


async def test_other_answers_are_no_checks(setup: Setup) -> None:
    await setup.ask(llm="large_llm")
    assert setup.seen.all[0].check == 0.0


async def test_a_check_whose_llm_is_down_is_answered_by_another(setup: Setup) -> None:
    setup.draws.value = 0.0
    setup.service.endpoints = build_endpoints(
        setup.settings, {**setup.llms, "large_llm": failing_llm()}
    )
    assert (await setup.ask()).llm == "small_llm"


@pytest.mark.parametrize("llm", ["small_llm", "large_llm"])
async def test_a_caller_that_names_an_llm_gets_its_answer(setup: Setup, llm: str) -> None:
    assert (await setup.ask(llm=llm)).text == f"answer of {llm}"


@pytest.mark.parametrize("cache_control", ["no-examples", "no-cache"])
async def test_a_caller_that_wants_no_examples_gets_no_stored_answer(
    setup: Setup, cache_control: str
) -> None:
    assert (await setup.ask(cache_control=cache_control)).llm != STORED


async def test_a_near_answer_that_has_not_earned_it_is_not_given(setup: Setup) -> None:
    setup.retriever.found = Retrieved(EMBEDDING, reusable=replace(FOUND, exact=False))
    assert (await setup.ask()).llm != STORED


async def test_without_a_working_model_an_llm_answers(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> ReuseChoice:
        raise RuntimeError("broken")

    monkeypatch.setattr(setup.model, "choose", broken)
    assert (await setup.ask()).llm in setup.llms


async def test_without_the_arm_none_is_given(setup: Setup) -> None:
    setup.service.stored = None
    assert (await setup.ask()).llm in setup.llms


# Whose answers may be given again


def key(settings: Settings | None = None, **values: Any) -> str:
    settings = settings or Settings()
    return answer_key_of(settings, build_request(settings, text="q", **values))


def test_log_probabilities_are_not_stored_with_an_answer() -> None:
    assert key()
    assert not key(return_log_probs=True)
    assert key(repetition_penalty=1.5) != key()


async def test_only_the_strongest_llms_answers_are_submitted_with_a_key(setup: Setup) -> None:
    setup.retriever.found = Retrieved(EMBEDDING)
    setup.service.settings = Settings.model_validate(
        {"examples": {"from_llms": ["small_llm", "large_llm"]}}
    )
    for llm in ("large_llm", "small_llm"):
        await setup.ask(llm=llm)
    large, small = await setup.submitted()
    assert (large.llm, large.answer_key) == ("large_llm", key())
    assert (small.llm, small.answer_key) == ("small_llm", "")


@pytest.mark.parametrize(
    "changed",
    [
        {"max_tokens": 7},
        {"temperature": 0.5, "seed": 1},
        {"temperature": 0.5, "seed": 2},
        {"temperature": 0.7, "seed": 1},
        {"seed": 1},
        {"top_p": 0.5},
        {"top_k": 3},
        {"stop_words": ["x"]},
    ],
)
def test_requests_that_are_sampled_otherwise_have_another_key(changed: dict[str, Any]) -> None:
    assert key(**changed) not in ("", key())
    assert key(**changed) == key(**changed)


def test_penalties_and_all_samplings_have_keys_of_their_own() -> None:
    samplings = [
        Sampling(),
        Sampling(frequency_penalty=0.5),
        Sampling(presence_penalty=0.5),
        Sampling(stop=("a", "b")),
        Sampling(stop=("a, b",)),
        Sampling(temperature=0.5, seed=1),
        Sampling(temperature=0.5, seed=2),
    ]
    assert len({answer_key(sampling, "l", "") for sampling in samplings}) == len(samplings)


def test_another_llm_or_revision_has_another_key() -> None:
    pairs = [("a", ""), ("b", ""), ("a", "1"), ("a1", "")]
    keys = [answer_key(Sampling(), llm, revision) for llm, revision in pairs]
    assert len(set(keys)) == len(pairs)


def test_who_samples_wants_a_fresh_answer_each_time() -> None:
    assert key(temperature=0.5) == ""


def test_without_a_bound_nothing_has_a_key() -> None:
    assert key(Settings.model_validate({"routing": {"reuse_error": 0.0}})) == ""
