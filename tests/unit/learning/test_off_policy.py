"""Off-policy estimates on simulated decisions, whose true values are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from echolm.errors import InvalidRequestError
from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, describe
from echolm.learning.off_policy import (
    Estimate,
    LoggedDecisions,
    Probabilities,
    doubly_robust,
    fit_reward_model,
    ips,
    read_ratings,
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
        body("c", llm="gone"),
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
    assert len(log) == 2
    assert dropped.pop("stored") == 1
    assert dropped == {"forced": 1, "unknown llm": 1, "revision": 1, "context": 1, "damaged": 4}


def test_a_log_without_ratings_is_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="learning log: expected ratings"):
        read(body("a", propensity=1.0))
