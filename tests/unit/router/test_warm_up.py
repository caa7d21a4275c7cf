"""An LLM gets requests once it is known, and is not kept from them for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from echolm.bandit.features import DIMENSION, HAS_EXAMPLES
from echolm.bandit.thompson import ThompsonSampling
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import Request, Retrieved, Sampling, Selected
from echolm.router.policy import Policy
from echolm.router.warm_up import LEAST_CASES, PATIENCE, WarmUp
from echolm.settings import LLMSettings, Settings
from echolm.wiring.routing import build_bandit
from numpy.typing import NDArray

RATINGS = 6
EXAMPLES = (Selected(11, "past request", "past answer", 0.9, 0.8),)
LLMS = tuple(
    LLMSettings(name=name, cost=cost, takes_examples=cost < 3)
    for name, cost in (("a", 1.0), ("b", 2.0), ("c", 3.0))
)


def contexts(*with_examples: bool) -> NDArray[np.float32]:
    X = np.zeros((len(with_examples), DIMENSION), dtype=np.float32)
    X[:, HAS_EXAMPLES] = with_examples
    X[:, 0] = 1.0 - X[:, HAS_EXAMPLES]
    return X


@dataclass
class Setup:
    settings: Settings = field(default_factory=lambda: Settings(llms=LLMS))
    given_up: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.featurizer, self.bandit = build_bandit(self.settings)
        self.warm_up = self.new(self.bandit)

    def new(self, bandit: ThompsonSampling, ratings: float = RATINGS) -> WarmUp:
        return WarmUp(bandit, "c", ratings, self.given_up.append)

    def learn(self, llm: str, with_examples: bool, times: int = RATINGS) -> None:
        [x] = contexts(with_examples)
        for _ in range(times):
            self.bandit.learn(llm, x, 1.0)

    def eligible(self, *with_examples: bool) -> list[list[str]]:
        eligible = self.warm_up.eligible(contexts(*with_examples))
        names = list(self.bandit.arms)
        if eligible is None:
            return [names] * len(with_examples)
        return [[n for n, ok in zip(names, row, strict=True) if ok] for row in eligible]


def test_at_first_only_the_reference_may_answer() -> None:
    setup = Setup()
    assert setup.eligible(False, True) == [["c"], ["c"]]
    assert setup.warm_up.lacking(True) == setup.warm_up.lacking(False) == ["a", "b"]


def test_each_llm_is_tried_in_the_cell_in_which_it_is_known() -> None:
    setup = Setup()
    setup.learn("a", with_examples=True, times=RATINGS - 1)
    assert setup.eligible(True) == [["c"]]
    setup.learn("a", with_examples=True, times=1)
    assert setup.eligible(False, True, False) == [["c"], ["a", "c"], ["c"]]
    setup.learn("b", with_examples=False)
    assert setup.eligible(False, True) == [["b", "c"], ["a", "c"]]
    assert (setup.warm_up.lacking(False), setup.warm_up.lacking(True)) == (["a"], ["b"])


def test_comparisons_are_evidence_and_a_restart_loses_none() -> None:
    setup = Setup()
    without, with_examples = contexts(False, True)
    for _ in range(RATINGS):
        for x in (without, with_examples):
            sites = setup.bandit.compare("a", x, "c", x, 0.5)
            for arm, site in zip(("a", "c"), sites, strict=True):
                setup.bandit.arms[arm].learn(x, site)
    assert setup.eligible(False, True) == [["a", "c"]] * 2
    restarted = build_bandit(setup.settings)[1]
    restarted.restore(setup.bandit.state())
    assert setup.new(restarted).lacking(True) == ["b"]


def test_without_a_number_of_ratings_all_are_tried_at_once() -> None:
    setup = Setup()
    assert setup.new(setup.bandit, ratings=0).eligible(contexts(False, True)) is None


def test_the_policy_draws_only_whom_it_may_and_says_so() -> None:
    setup = Setup()
    settings = setup.settings
    bias = LoadBias(settings.routing, settings.llms, LoadTracker())
    rng = np.random.default_rng(0)
    policy = Policy(setup.featurizer, setup.bandit, bias, rng, setup.warm_up)
    request = Request("a request", Sampling())
    setup.learn("a", with_examples=True)
    rows = [(request, Retrieved(examples=EXAMPLES)), (request, Retrieved())] * 50
    choices = [choice for _, choice in policy.decide(rows)]
    assert {c.arm for c in choices[::2]} == {"a", "c"}
    assert all(c.probabilities["b"] == 0.0 for c in choices[::2])
    assert {(c.arm, c.propensity) for c in choices[1::2]} == {("c", 1.0)}
    forced = Request("a request", Sampling(), llm="b")
    assert policy.force(forced, Retrieved())[1].arm == "b"


# Giving up


def test_an_llm_of_which_nothing_is_heard_is_tried_after_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    setup = Setup()
    setup.learn("b", with_examples=True)
    held = PATIENCE * RATINGS
    for _ in range(held):
        assert setup.eligible(True) == [["b", "c"]]
    assert setup.eligible(True, False) == [["a", "b", "c"], ["c"]]
    assert setup.given_up == ["no_evidence"]
    [message] = [record.getMessage() for record in caplog.records]
    assert f"a is tried without a warm-up for requests with examples: after {held}" in message
    assert setup.warm_up.lacking(True) == []


def test_as_long_as_there_is_progress_it_goes_on() -> None:
    setup = Setup()
    for _ in range(3):
        for _ in range(PATIENCE * RATINGS - 1):
            assert setup.eligible(True) == [["c"]]
        setup.learn("a", with_examples=True, times=1)
        setup.learn("b", with_examples=True, times=1)
    assert setup.given_up == []


def test_without_a_judge_there_is_no_warm_up() -> None:
    setup = Setup()
    setup.warm_up.give_up("no_judge", "nothing judges")
    assert setup.warm_up.eligible(contexts(False, True)) is None
    assert setup.given_up == ["no_judge"] * 4  # two LLMs in two cells
    setup.warm_up.give_up("no_judge", "nothing judges")
    assert len(setup.given_up) == 4


def test_a_judge_that_can_mostly_not_decide_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    setup = Setup()
    for k in range(LEAST_CASES - 1):
        setup.warm_up.judged(decided=k % 3 == 0)
    assert setup.eligible(True) == [["c"]]
    setup.warm_up.judged(decided=False)
    assert setup.eligible(True, False) == [["a", "b", "c"]] * 2
    assert set(setup.given_up) == {"no_preference"}
    [message] = [record.getMessage() for record in caplog.records]
    assert "could not decide in 13 of 20 cases" in message
    setup.warm_up.judged(decided=False)
    assert len(caplog.records) == 1


def test_a_judge_that_can_mostly_decide_goes_on() -> None:
    setup = Setup()
    for k in range(3 * LEAST_CASES):
        setup.warm_up.judged(decided=k % 3 > 0)
    assert setup.eligible(True) == [["c"]]


def test_what_is_known_of_the_least_known_llm_is_told() -> None:
    setup = Setup()
    assert setup.warm_up.share(True) == 1.0
    setup.learn("a", with_examples=True, times=9 * RATINGS)
    assert setup.warm_up.share(True) == 1.0
    setup.learn("b", with_examples=True, times=8 * RATINGS)
    assert (setup.warm_up.share(True), setup.warm_up.share(False)) == (0.5, 1.0)
    setup.warm_up.give_up("no_judge", "nothing judges")
    assert setup.warm_up.share(True) == 0.0


def test_the_state_is_shown() -> None:
    setup = Setup()
    setup.learn("a", with_examples=True)
    assert setup.warm_up.evidence()[:2] == [("a", "without", 0, True), ("a", "with", 6, False)]
    assert setup.warm_up.evidence()[-1] == ("c", "with", 0, False)
