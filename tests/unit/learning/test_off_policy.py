"""Off-policy estimates on simulated decisions, whose true values are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from echolm.errors import InvalidRequestError
from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, describe
from echolm.learning.logged_ratings import read_ratings
from echolm.learning.off_policy import (
    Estimate,
    LoggedDecisions,
    Probabilities,
    doubly_robust,
    fit_reward_model,
    ips,
    snips,
)
from echolm.primitives import Decision

ARMS = ("small", "medium", "large")
# Expected reward of each arm is linear in x (with a little that no linear model explains).
SLOPES = np.array([[0.2, 0.6, 0.0], [0.4, 0.0, 0.3], [0.8, 0.0, 0.05]])


def softmax(scores: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


class World:
    """Decisions of a logging policy that prefers the small arm, more so where x[1] is high."""

    def __init__(self, seed: int, n: int = 1_000) -> None:
        self.rng = np.random.default_rng(seed)
        self.x = np.hstack([np.ones((n, 1)), self.rng.random((n, 2))])
        self.expected = np.clip(self.x @ SLOPES.T + 0.05 * np.sin(9 * self.x[:, [1]]), 0, 1)
        self.logging = 0.9 * softmax(3 * self.x @ SLOPES.T + np.array([1.5, 0, -1])) + 0.1 / 3
        uniform = self.rng.random((n, 1))
        drawn = (uniform >= self.logging.cumsum(axis=1)[:, :-1]).sum(axis=1)
        rows = np.arange(n)
        rewards = (self.rng.random(n) < self.expected[rows, drawn]).astype(np.float64)
        self.log = LoggedDecisions(ARMS, self.x, drawn, self.logging[rows, drawn], rewards)

    def target(self) -> Probabilities:
        """Another policy: by context, and not deterministic."""
        return softmax(8 * self.x @ SLOPES.T)


TRUTH = float((World(99, 400_000).target() * World(99, 400_000).expected).sum(axis=1).mean())
SEEDS = range(200)


def estimates() -> dict[str, list[Estimate]]:
    found: dict[str, list[Estimate]] = {"ips": [], "snips": [], "dr": []}
    for seed in SEEDS:
        world = World(seed)
        log, target = world.log, world.target()
        found["ips"].append(ips(log, target))
        found["snips"].append(snips(log, target))
        found["dr"].append(doubly_robust(log, target, fit_reward_model(log)))
    return found


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Estimate]]:
    return estimates()


@pytest.mark.parametrize("kind", ["ips", "snips", "dr"])
def test_an_estimate_is_right_on_average_and_knows_its_error(
    runs: dict[str, list[Estimate]], kind: str
) -> None:
    values = np.array([e.value for e in runs[kind]])
    errors = np.array([e.standard_error for e in runs[kind]])
    assert abs(values.mean() - TRUTH) < 3 * values.std() / np.sqrt(len(values)) + 0.001
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    covered = np.mean(np.abs(values - TRUTH) < 1.96 * errors)
    assert 0.9 < covered < 0.99


def test_the_mean_of_the_log_is_not_the_targets_value() -> None:
    means = np.array([World(seed).log.rewards.mean() for seed in SEEDS])
    assert abs(means.mean() - TRUTH) > 10 * means.std() / np.sqrt(len(means))


def test_doubly_robust_varies_less_than_self_normalised_and_that_less_than_plain(
    runs: dict[str, list[Estimate]],
) -> None:
    spread = {kind: np.std([e.value for e in found]) for kind, found in runs.items()}
    assert spread["dr"] < spread["ips"]
    assert spread["snips"] < spread["ips"]


def test_doubly_robust_forgives_wrong_propensities_or_a_wrong_model() -> None:
    wrong_p, wrong_q, both, plain = [], [], [], []
    for seed in SEEDS:
        world = World(seed)
        target = world.target()
        bad = replace(world.log, propensities=np.full(len(world.log), 1 / 3))
        nonsense = np.full_like(world.expected, 0.1)
        wrong_p.append(doubly_robust(bad, target, world.expected).value)
        wrong_q.append(doubly_robust(world.log, target, nonsense).value)
        both.append(doubly_robust(bad, target, nonsense).value)
        plain.append(ips(bad, target).value)
    for right in (wrong_p, wrong_q):
        assert np.mean(right) == pytest.approx(TRUTH, abs=0.008)
    for wrong in (both, plain):
        assert abs(np.mean(wrong) - TRUTH) > 0.03


def test_the_self_normalised_estimate_shifts_with_the_rewards_and_keeps_their_range() -> None:
    world = World(0, 60)
    target = world.target()
    base = snips(world.log, target)
    shifted = snips(replace(world.log, rewards=world.log.rewards + 7), target)
    assert shifted.value == pytest.approx(base.value + 7)
    assert shifted.standard_error == pytest.approx(base.standard_error)
    # A common factor of all propensities does not matter, either.
    halved = replace(world.log, propensities=world.log.propensities / 2)
    assert snips(halved, target).value == pytest.approx(base.value)
    assert ips(halved, target).value == pytest.approx(2 * ips(world.log, target).value)
    ones = replace(world.log, rewards=np.ones(len(world.log)))
    assert snips(ones, target).value == pytest.approx(1)
    assert ips(ones, target).value != pytest.approx(1, abs=1e-3)


def test_the_logging_policys_own_value_is_the_mean_with_all_decisions_effective() -> None:
    world = World(1)
    for estimate in (ips(world.log, world.logging), snips(world.log, world.logging)):
        assert estimate.value == pytest.approx(world.log.rewards.mean())
        assert estimate.effective_sample_size == pytest.approx(len(world.log))


def test_a_fixed_arm_is_judged_by_the_decisions_that_drew_it() -> None:
    world = World(2, 20_000)
    for index, arm in enumerate(ARMS):
        found = doubly_robust(world.log, world.log.always(arm), fit_reward_model(world.log))
        assert abs(found.value - world.expected[:, index].mean()) < 4 * found.standard_error
        assert found.effective_sample_size < (world.log.drawn == index).sum() + 1


def test_clipping_trades_noise_for_bias_and_says_how_much_was_cut() -> None:
    world = World(3)
    free, clipped = (ips(world.log, world.log.always("large"), m) for m in (np.inf, 2.0))
    assert clipped.standard_error < free.standard_error
    assert clipped.value < free.value
    assert (free.clipped, clipped.clipped > 0.05) == (0.0, True)


def test_a_target_without_support_in_the_log_is_not_a_number_rather_than_zero() -> None:
    log = World(4, 50).log
    log = log.part(log.drawn != 2)
    assert np.isnan(snips(log, log.always("large")).value)
    assert ips(log, log.always("large")).effective_sample_size == 0


@pytest.mark.parametrize("target", [np.ones((5, 3)), np.full((50, 3), 0.5), -np.ones((50, 3))])
def test_what_is_no_policy_is_refused(target: Probabilities) -> None:
    with pytest.raises(InvalidRequestError, match="target: expected probabilities"):
        ips(World(5, 50).log, target)


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_propensities_are_refused(propensity: float) -> None:
    log = World(6, 3).log
    with pytest.raises(InvalidRequestError, match="propensities"):
        replace(log, propensities=np.array([0.5, propensity, 0.5]))


# Decisions of which only some are rated


class Asked(World):
    """The same decisions, of which few are rated: where x[1] is high, and rare arms, more often."""

    def __init__(self, seed: int, n: int = 6_000) -> None:
        super().__init__(seed, n)
        valuable = (self.x[:, 1] > 0.9) | (self.log.propensities < 0.15) & (self.x[:, 2] > 0.8)
        self.probability = np.where(valuable, 1.0, 0.1)
        rated = self.rng.random(n) < 0.6 * self.probability  # six callers in ten answer
        self.expected, self.logging = self.expected[rated], self.logging[rated]
        self.x, probability = self.x[rated], self.probability[rated]
        self.log = replace(self.log.part(rated), weights=1.0 / probability)


@pytest.fixture(scope="module")
def asked_runs() -> dict[str, list[Estimate]]:
    found: dict[str, list[Estimate]] = {"ips": [], "snips": [], "dr": [], "naive": []}
    for seed in SEEDS:
        world = Asked(seed)
        log, target = world.log, world.target()
        alike = replace(log, weights=np.ones(len(log)))
        found["ips"].append(ips(log, target))
        found["snips"].append(snips(log, target))
        found["dr"].append(doubly_robust(log, target, fit_reward_model(log)))
        found["naive"].append(snips(alike, target))
    return found


@pytest.mark.parametrize("kind", ["ips", "snips", "dr"])
def test_an_estimate_is_right_where_some_answers_are_rated_more_often_than_others(
    asked_runs: dict[str, list[Estimate]], kind: str
) -> None:
    values = np.array([e.value for e in asked_runs[kind]])
    errors = np.array([e.standard_error for e in asked_runs[kind]])
    assert abs(values.mean() - TRUTH) < 3 * values.std() / np.sqrt(len(values)) + 0.002
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    assert 0.9 < np.mean(np.abs(values - TRUTH) < 2 * errors) <= 0.995


def test_counting_all_ratings_alike_is_wrong(asked_runs: dict[str, list[Estimate]]) -> None:
    naive = np.array([e.value for e in asked_runs["naive"]])
    right = np.array([e.value for e in asked_runs["snips"]])
    assert abs(naive.mean() - TRUTH) > 5 * abs(right.mean() - TRUTH) + 0.02


def test_kinds_of_ratings_are_brought_together_and_err_less_than_each() -> None:
    found: dict[str, list[Estimate]] = {"first": [], "second": [], "both": []}
    for seed in SEEDS:
        first, second = Asked(seed).log, Asked(1_000 + seed).log
        # The second kind has weights of another size: only their ratios are known.
        second = replace(second, weights=50.0 * second.weights)
        names = ("contexts", "drawn", "propensities", "rewards", "weights")
        both = LoggedDecisions(
            ARMS,
            *(np.concatenate([getattr(first, n), getattr(second, n)]) for n in names),
            kinds=np.repeat([0, 1], [len(first), len(second)]),
            kind_names=("asked", "judged"),
        )
        for name, log in (("first", first), ("second", second), ("both", both)):
            found[name].append(snips(log, log.always("medium")))
        assert both.sources() == {"asked": len(first), "judged": len(second)}
    spread = {name: np.std([e.value for e in runs]) for name, runs in found.items()}
    assert spread["both"] < 0.85 * min(spread["first"], spread["second"])
    errors = [e.standard_error for e in found["both"]]
    assert np.mean(errors) == pytest.approx(spread["both"], rel=0.2)


def test_answers_of_one_request_count_as_one_draw() -> None:
    world = World(7, 500)
    twice = world.log.part(np.repeat(np.arange(500), 2))
    once, both = (snips(log, log.always("small")) for log in (world.log, twice))
    assert both.value == pytest.approx(once.value)
    assert both.standard_error == pytest.approx(once.standard_error)


def test_an_arm_that_is_not_known_is_part_of_what_was_asked() -> None:
    world = World(8, 20_000)
    stored = world.rng.random(len(world.log)) < 0.3  # a fourth arm answers three requests in ten
    log = replace(
        world.log,
        drawn=np.where(stored, -1, world.log.drawn),
        propensities=np.where(stored, 0.3, 0.7 * world.log.propensities),
    )
    for estimate in (
        ips(log, world.target()),
        doubly_robust(log, world.target(), fit_reward_model(log)),
    ):
        assert abs(estimate.value - TRUTH) < 3 * estimate.standard_error


# Reading the learning log


def body(id: str, score: float = 0.5, **changes: Any) -> dict[str, Any]:
    x = np.array([1.0, 0.5, 0.25], dtype=np.float32)
    return {**describe(Decision(id, "t", "small", x, 0.5, 0.5, ())), "score": score, **changes}


def read(*bodies: dict[str, Any], **options: Any) -> tuple[LoggedDecisions, dict[str, int]]:
    events = [Event(str(i), RATING, b, 0) for i, b in enumerate(bodies)]
    events.insert(1, Event("p", PREFERENCE, {"better": body("x"), "worse": body("y")}, 0))
    return read_ratings(events, ARMS, **options)


def test_ratings_become_decisions_and_the_last_rating_counts() -> None:
    log, dropped = read(
        body("a", 0.1), body("b", 0.2, llm="large", propensity=0.25), body("a", 0.9)
    )
    assert log.rewards.tolist() == [0.9, 0.2]
    assert log.drawn.tolist() == [0, 2]
    assert log.propensities.tolist() == [0.5, 0.25]
    assert log.contexts.tolist() == [[1.0, 0.5, 0.25]] * 2
    assert dropped == {}


def test_ratings_without_a_draw_are_dropped_and_counted() -> None:
    log, dropped = read(
        body("a"),
        body("b", propensity=1.0),
        body("c", llm="gone"),  # one of what was asked of the router, though no policy draws it
        body("d", revision="old"),
        body("e", context=[1.0]),
        body("f", context=[float("nan")] * 3),
        body("g", score="good"),
        body("h", propensity=0),
        {},
        body("i"),
        body("j", llm="stored"),
        revisions={"small": ""},
    )
    assert len(log) == 3
    assert dropped == {"stored": 1, "forced": 1, "revision": 1, "context": 1, "damaged": 4}


def judged(id: str, **judging: Any) -> dict[str, Any]:
    return body(id, source="judge:grader", judging={"request_id": id, **judging})


ASKED = {"solicited": "random", "solicit_probability": 0.02}
KINDS = [
    body("volunteered"),
    body("asked", **ASKED),
    body("valuable", solicited="value", solicit_probability=1.0),
    judged("routed", asked=False, solicited=False, probability=0.01, propensity=0.4),
    judged("compared", asked=False, solicited=True, probability=0.0, propensity=0.0),
    # Of an earlier version, which did not log how probable a rating is.
    judged("old routed", asked=False, solicited=False),
    judged("old asked", asked=True, solicited=False),
    judged("old solicited", asked=False, solicited=True),
]


def test_what_was_asked_for_or_judged_at_random_is_used_with_its_probability() -> None:
    log, dropped = read(*KINDS)
    assert log.weights.tolist() == pytest.approx([50, 1, 100, 1])
    assert log.propensities.tolist() == [0.5, 0.5, 0.4, 0.5]
    assert log.sources() == {"asked": 2, "judged": 2}
    assert dropped == {"volunteered": 1, "judged, no sample": 3}


@pytest.mark.parametrize(
    ("ratings", "sources", "weights"),
    [
        ("asked", {"asked": 2}, [50, 1]),
        ("judged", {"judged": 2}, [100, 1]),
        ("volunteered", {"volunteered": 1}, [1]),
        ("all", {"volunteered": 1, "asked": 2, "judged": 2}, [1, 1, 1, 100, 1]),
    ],
)
def test_the_kinds_of_ratings_can_be_chosen(
    ratings: Any, sources: dict[str, int], weights: list[float]
) -> None:
    log, dropped = read(*KINDS, ratings=ratings)
    assert log.sources() == sources
    assert log.weights.tolist() == pytest.approx(weights)
    assert sum(dropped.values()) == len(KINDS) - len(weights)


def test_volunteered_ratings_are_used_where_nobody_was_asked() -> None:
    log, dropped = read(body("a"), body("b"))
    assert (log.sources(), dropped) == ({"volunteered": 2}, {})


def test_a_callers_and_a_judges_rating_of_one_answer_are_of_one_request() -> None:
    log, _ = read(
        body("a", **ASKED), judged("a", probability=0.1, propensity=0.5), body("b", **ASKED)
    )
    assert log.requests.tolist() == [0, 0, 1]


def test_a_probability_of_asking_that_cannot_be_is_damage() -> None:
    log, dropped = read(
        body("a"),
        body("b", solicited="random", solicit_probability=0.0),
        body("c", solicited="random", solicit_probability="often"),
        judged("d", probability=-1.0, propensity=0.5),
    )
    assert (len(log), dropped) == (1, {"damaged": 3})


def test_contexts_of_other_request_statistics_are_converted_or_dropped() -> None:
    bodies = [body("a"), body("b", statistics=2), body("c", statistics=2)]
    log, dropped = read(*bodies)
    assert (len(log), dropped) == (2, {"context": 1})

    def convert(x: np.ndarray, version: int) -> np.ndarray:  # type: ignore[type-arg]
        if version == 0:
            raise ValueError("version: expected 2, got 0")
        return x * version

    log, dropped = read(*bodies, body("d", statistics=3), convert=convert)
    assert log.contexts[:, 0].tolist() == [2, 2, 3]
    assert dropped == {"context": 1}


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_weights_are_refused(weight: float) -> None:
    log = World(6, 3).log
    with pytest.raises(InvalidRequestError, match="weights"):
        replace(log, weights=np.array([1.0, weight, 1.0]))


def test_a_log_without_ratings_is_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="learning log: expected ratings"):
        read(body("a", propensity=1.0))
