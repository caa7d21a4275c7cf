"""For which answers a rating is asked, and how many fewer ratings that takes.

The simulation: requests of 24 topics (Zipf); four in ten have no relevant example, and the small
LLM is known to be poor then, a clear case. With examples it is as good as the large LLM on most
topics and fails on others, which the router has to find out. Ratings are noisy and come for
the answer that was given. A policy's value is the mean over requests of the quality, less cost,
of the LLM that it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from echolm.bandit.arms import BayesianLinearArm
from echolm.bandit.rating_value import value_of_rating
from echolm.bandit.thompson import ThompsonSampling
from echolm.primitives import Choice
from echolm.router.solicitation import Solicitor
from echolm.settings import Settings
from numpy.typing import NDArray

ROUTING = Settings().routing
NAMES = ("small", "large")
COSTS = ROUTING.cost_weight * np.array([0.1, 1.0])
TOPICS, TOPIC_DIM, NO_EXAMPLE = 24, 16, 0.4
SEEDS = range(12)
BUDGET, STEP, RATE = 500, 10, 0.05
REQUESTS = round(1.3 * BUDGET / RATE)

Rule = Callable[[Choice, np.random.Generator], bool]
Curve = NDArray[np.float64]


class World:
    """Contexts and true qualities.

    Args:
        relevance: the least relevance of an example, if there is one. The prior's decision
            changes at 0.945.
    """

    def __init__(self, seed: int, relevance: float) -> None:
        self._relevance = relevance
        rng = np.random.default_rng(seed)
        topics = rng.normal(size=(TOPICS, TOPIC_DIM))
        self._topics = topics / np.linalg.norm(topics, axis=1, keepdims=True)
        popularity = np.arange(1, TOPICS + 1) ** -1.1
        self._popularity = popularity / popularity.sum()
        hard = rng.random(TOPICS) < 0.35
        hard[0] = False
        good, bad = rng.uniform(0.95, 1.0, TOPICS), rng.uniform(0.3, 0.85, TOPICS)
        self._small = np.where(hard, bad, good)
        self._large = rng.uniform(0.96, 1.0, TOPICS)

    def draw(self, rng: np.random.Generator, n: int) -> tuple[Curve, Curve]:
        """Contexts [n, d] and the qualities of both LLMs [n, 2]."""
        topic = rng.choice(TOPICS, p=self._popularity, size=n)
        place = self._topics[topic] + rng.normal(0, 0.075, (n, TOPIC_DIM))
        poor = rng.random(n) < NO_EXAMPLE
        relevance = np.where(poor, rng.uniform(0, 0.3, n), rng.uniform(self._relevance, 1, n))
        relevance = relevance[:, None]
        small = self._small[topic] * relevance[:, 0] + 0.32 * (1 - relevance[:, 0])
        contexts = np.hstack([1 - relevance, relevance, place * relevance])
        return contexts, np.stack([small, self._large[topic]], axis=1)


def new_bandit() -> ThompsonSampling:
    """The router's, with its defaults, before any rating."""
    precision = ROUTING.prior_ratings / ROUTING.noise**2
    arms = {}
    for name, prior in zip(NAMES, ((0.32, 0.97), (0.98, 0.98)), strict=True):
        mean = np.array([*prior, *[0.0] * TOPIC_DIM])
        arms[name] = BayesianLinearArm(mean, precision, ROUTING.noise, ROUTING.discount)
    return ThompsonSampling(
        arms,
        {"small": 0.1, "large": 1.0},
        ROUTING.cost_weight,
        ROUTING.exploration_floor,
        ROUTING.exploration,
    )


def learning_curve(seed: int, rule: Rule, relevance: float) -> Curve:
    """The policy's value after every ``STEP`` ratings."""
    world, rng, bandit = World(seed, relevance), np.random.default_rng(seed), new_bandit()
    contexts, qualities = world.draw(np.random.default_rng(999), 1_000)
    worth = qualities - COSTS

    def value() -> float:
        means = np.stack([contexts @ bandit.arms[name].mean for name in NAMES], axis=1)
        return float(worth[np.arange(len(worth)), (means - COSTS).argmax(1)].mean())

    curve, ratings = [value()], 0
    for x, quality in zip(*world.draw(rng, REQUESTS), strict=True):
        choice = bandit.choose(x, {}, rng)
        if not rule(choice, rng):
            continue
        rating = quality[NAMES.index(choice.arm)] + rng.normal(0, ROUTING.noise)
        bandit.learn(choice.arm, x, min(1.0, max(0.0, rating)))
        ratings += 1
        if ratings % STEP == 0:
            curve.append(value())
        if ratings == BUDGET:
            break
    # A rule that asks for too little learns no more.
    return np.array([*curve, *[curve[-1]] * (BUDGET // STEP + 1 - len(curve))])


def at_random(choice: Choice, rng: np.random.Generator) -> bool:
    return rng.random() < RATE


def where_confidences_are_close(choice: Choice, rng: np.random.Generator) -> bool:
    """The paper's rule."""
    return float(np.std(list(choice.probabilities.values()))) < 0.1


def solicited() -> Rule:
    solicitor = Solicitor(RATE)
    return lambda choice, rng: solicitor.should_solicit(choice.rating_value)


@cache
def mean_curve(kind: str, relevance: float = 0.9) -> Curve:
    rules = {
        "random": lambda: at_random,
        "paper": lambda: where_confidences_are_close,
        "solicited": solicited,
    }
    return np.mean([learning_curve(seed, rules[kind](), relevance) for seed in SEEDS], axis=0)


def ratings_until(curve: Curve, final: float) -> float:
    """Ratings until 95% of what can be gained from the start to ``final``; inf if never."""
    smooth = np.convolve(curve, np.ones(3) / 3, mode="valid")
    reached = np.nonzero(smooth >= curve[0] + 0.95 * (final - curve[0]))[0]
    return float((reached[0] + 1) * STEP) if len(reached) else np.inf


def test_soliciting_needs_less_than_half_of_the_ratings() -> None:
    by_chance, asked = mean_curve("random"), mean_curve("solicited")
    final = float(by_chance[-10:].mean())
    assert final - by_chance[0] > 0.02  # there is something to learn
    assert ratings_until(asked, final) <= ratings_until(by_chance, final) / 2
    assert asked[-10:].mean() >= final - 0.001


def test_confidences_that_are_never_close_do_not_keep_it_from_asking() -> None:
    paper, asked = mean_curve("paper", relevance=0.98), mean_curve("solicited", relevance=0.98)
    assert (paper == paper[0]).all()  # the prior is sure, and wrong on some topics
    assert asked[-1] - asked[0] > 0.03


# The value


def test_a_rating_is_worth_more_the_closer_the_arms_the_wider_and_the_less_noisy() -> None:
    base = value_of_rating([0.9, 0.88], [0.1, 0.1], 0, 0.15)
    assert value_of_rating([0.9, 0.70], [0.1, 0.1], 0, 0.15) < base
    assert value_of_rating([0.9, 0.88], [0.2, 0.1], 0, 0.15) > base
    assert value_of_rating([0.9, 0.88], [0.1, 0.1], 0, 0.50) < base
    # How well the other arm is known does not change what this rating can do.
    assert value_of_rating([0.9, 0.88], [0.1, 0.9], 0, 0.15) == base


def test_it_is_the_expected_gain_of_the_best_score() -> None:
    scores, stds, noise = [0.7, 0.8, 0.75], [0.2, 0.1, 0.3], 0.15
    rng = np.random.default_rng(0)
    for rated in range(3):
        move = stds[rated] ** 2 / np.hypot(stds[rated], noise)
        after = np.tile(scores, (200_000, 1))
        after[:, rated] += rng.normal(0, move, len(after))
        gain = after.max(1).mean() - max(scores)
        assert value_of_rating(scores, stds, rated, noise) == pytest.approx(gain, abs=1e-3)


@pytest.mark.parametrize(("scores", "stds"), [([0.5], [0.1]), ([0.5, 0.4], [0.0, 0.1])])
def test_where_nothing_can_change_a_rating_is_worth_nothing(
    scores: list[float], stds: list[float]
) -> None:
    assert value_of_rating(scores, stds, 0, 0.15) == 0.0


# The share


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_the_share_is_asked_at_any_scale_of_values(share: float, scale: float) -> None:
    solicitor, rng = Solicitor(share), np.random.default_rng(0)
    values = scale * rng.exponential(size=5_000)
    asked = np.array([solicitor.should_solicit(v) for v in values])
    assert asked.mean() == pytest.approx(share, rel=0.15)
    if share < 1:  # once there is something to compare with, the most valuable ones
        assert values[500:][asked[500:]].min() > np.quantile(values, 1 - share) * 0.5


def test_equal_values_keep_the_share() -> None:
    solicitor = Solicitor(0.1)
    assert sum(solicitor.should_solicit(0.5) for _ in range(1_000)) == pytest.approx(100, abs=2)


def test_it_adapts_when_the_router_has_learnt() -> None:
    solicitor, rng = Solicitor(0.1), np.random.default_rng(0)
    for value in rng.exponential(size=2_000):
        solicitor.should_solicit(value)
    late = [solicitor.should_solicit(value / 1_000) for value in rng.exponential(size=2_000)]
    assert sum(late[500:]) == pytest.approx(150, abs=30)


def test_no_share_and_no_value_ask_nobody() -> None:
    assert not any(Solicitor(0.0).should_solicit(value) for value in (1.0, 0.5))
    assert not any(Solicitor(1.0).should_solicit(0.0) for _ in range(3))
