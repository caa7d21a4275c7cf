"""Judgements as a sample of known probability: what estimates of other policies make of them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from echolm.errors import InvalidRequestError
from echolm.judges.events import rated_propensity
from echolm.judges.service import JudgingService
from echolm.learning.event_log import START, Event
from echolm.learning.logged_ratings import read_ratings
from echolm.learning.off_policy import LoggedDecisions, snips
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import Choice, Decision, Retrieved, Served
from echolm.router.policy import Policy
from echolm.router.validation import build_request
from echolm.settings import Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.judge import FakeJudge
from echolm.testing.llm import FakeLLM
from echolm.wiring.llms import build_endpoints
from echolm.wiring.routing import build_bandit

LLMS = ("a", "b", "c")  # c is the reference
ROUTED = {"easy": (0.7, 0.2, 0.1), "hard": (0.05, 0.15, 0.8)}
SCORES = {"easy": (0.9, 0.8, 1.0), "hard": (0.3, 0.5, 0.8)}
REQUESTS = 1_500


class Metrics:
    def judged(self, kind: str, reason: str, result: str, tokens: int, seconds: float) -> None: ...
    def both_orders(self, kind: str, consistent: bool) -> None: ...
    def rated(self, llm: str, score: float, predicted: float) -> None: ...
    def compared(self, llm: str, reason: str, share: float) -> None: ...
    def warm_up_given_up(self, reason: str) -> None: ...


async def judge_all(scale: Any = "absolute", **judging: Any) -> MemoryEventLog:
    """The log after so many requests, half of them easy, were judged or not."""
    settings = Settings.model_validate(
        {
            "llms": [
                {"name": name, "cost": cost, "takes_examples": False, "chat_template": "echolm"}
                for name, cost in zip(LLMS, (0.1, 0.5, 1.0), strict=True)
            ],
            "judging": {"kind": "grader", "grader": "a:b", "max_concurrent": 5_000, **judging},
        }
    )
    llms = {
        name: FakeLLM(reply=lambda prompt, n=name: f"{'easy' if 'easy' in prompt else 'hard'} {n}")
        for name in LLMS
    }
    scores = {
        f"{text} {name}": score
        for text, row in SCORES.items()
        for name, score in zip(LLMS, row, strict=True)
    }
    featurizer, bandit = build_bandit(settings)
    load, log, rng = LoadTracker(), MemoryEventLog(), np.random.default_rng(0)
    policy = Policy(featurizer, bandit, LoadBias(settings.routing, settings.llms, load), rng)
    service = JudgingService(
        settings,
        FakeJudge(scores, scale=scale),
        build_endpoints(settings, llms),
        policy,
        load,
        log,
        Metrics(),
        rng=random.Random(0),
    )
    for n in range(REQUESTS):
        text = ("easy", "hard")[n % 2]
        llm = str(rng.choice(LLMS, p=ROUTED[text]))
        probabilities = dict(zip(LLMS, ROUTED[text], strict=True))
        request = build_request(settings, text=text)
        x = featurizer(text, None, [])
        propensity = probabilities[llm]
        solicited = "value" if rng.random() < 0.2 and llm == "a" else ""
        decision = Decision(str(n), "public", llm, x, propensity, 0.5, (), solicited=solicited)
        choice = Choice(llm, propensity, probabilities, 0.5)
        service.served(Served(request, Retrieved(), x, choice, decision, f"{text} {llm}"))
        if n % 100 == 0:
            await asyncio.gather(*service.tasks)
    await asyncio.gather(*service.tasks)
    return log


def decisions(log: MemoryEventLog) -> tuple[LoggedDecisions, dict[str, int]]:
    return read_ratings(log.read(START, 10_000), LLMS)


async def test_judged_answers_tell_what_every_llm_would_score() -> None:
    log, dropped = decisions(await judge_all(sample_share=0.8, solicited_share=0.2))
    assert log.sources().keys() == {"judged"}
    assert dropped["judged, no sample"] > 10  # where a rating was asked for as well
    for k, name in enumerate(LLMS):
        truth = np.mean([row[k] for row in SCORES.values()])
        found = snips(log, log.always(name))
        assert abs(found.value - truth) < 3 * found.standard_error
        assert found.standard_error < 0.03


async def test_counting_the_answers_that_were_made_to_be_judged_as_drawn_is_wrong() -> None:
    events = (await judge_all(sample_share=0.8, solicited_share=0.0)).read(START, 10_000)
    bodies = [{k: v for k, v in e.body.items() if k not in ("judging", "source")} for e in events]
    naive, _ = read_ratings([Event("", "rating", body, 0) for body in bodies], LLMS)
    found = snips(naive, naive.always("a"))
    assert abs(found.value - 0.6) > 3 * found.standard_error


@pytest.mark.parametrize("scale", ["preference", "agreement"])
async def test_a_judge_that_only_compares_gives_no_sample(scale: str) -> None:
    log = await judge_all(scale, sample_share=0.1, solicited_share=0.0)
    assert log.read(START, 1)
    with pytest.raises(InvalidRequestError, match="learning log: expected ratings"):
        decisions(log)


def test_the_propensities_of_both_answers_of_a_judgement_sum_to_one() -> None:
    routed = {"a": 0.2, "b": 0.1, "c": 0.6, "stored": 0.1}
    arms = {arm: rated_propensity(routed, arm, "c", LLMS) for arm in routed}
    assert sum(arms.values()) == pytest.approx(1.0)
    assert (arms["c"], arms["stored"]) == (0.5, pytest.approx(0.05))
    assert arms["a"] == pytest.approx(0.5 * (0.2 + 0.6 * 0.2 / 0.3))


def test_where_nothing_was_drawn_there_is_no_propensity() -> None:
    assert rated_propensity({"a": 1.0}, "a", "c", LLMS) == 0.0
    assert rated_propensity({"a": 0.0, "c": 1.0}, "a", "c", LLMS) == 0.0
