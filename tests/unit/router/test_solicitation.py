"""For which answers a rating is asked, and how many fewer ratings that takes.

The simulation: requests of 24 topics (Zipf); four in ten have no examples, and the small LLM is
poor then. With examples it is as good as the large LLM on most topics and fails on others, which
the router has to find out. Ratings say right or wrong and come for the answer that was given. A
policy's value is the mean over requests of the quality, less cost, of the LLM that it takes.
"""

from __future__ import annotations

import math
import random
from functools import cache

import numpy as np
import pytest
from echolm.bandit.arms import LogisticArm
from echolm.bandit.rating_value import value_of_rating
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.logistic import GaussianWeights, logit
from echolm.router.solicitation import Solicitor
from echolm.settings import Settings
from numpy.typing import NDArray

ROUTING = Settings().routing
NAMES = ("small", "large")
COSTS = ROUTING.cost_weight * np.array([0.1, 1.0])
TOPICS, TOPIC_DIM, NO_EXAMPLE = 24, 16, 0.4
SEEDS = range(8)
BUDGET, STEP, RATE, BATCH = 400, 10, 0.05, 20
REQUESTS = round(1.3 * BUDGET / RATE)

Curve = NDArray[np.float64]


class World:
    """Contexts (constant, has examples, the topic's place if it has) and true qualities."""

    def __init__(self, seed: int) -> None:
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
        has = (rng.random((n, 1)) >= NO_EXAMPLE).astype(np.float64)
        small = np.where(has[:, 0] > 0, self._small[topic], 0.32)
        contexts = np.hstack([np.ones((n, 1)), has, place * has])
        return contexts, np.stack([small, self._large[topic]], axis=1)


def new_bandit() -> ThompsonSampling:
    """As the router's before any rating."""
    arms = {}
    for name, quality, gain, deviation in (("small", 0.7, 0.5, 1.5), ("large", 0.8, 0.0, 0.25)):
        constant = (ROUTING.prior_ratings * quality * (1 - quality)) ** -0.5
        mean = np.array([logit(quality), gain, *[0.0] * TOPIC_DIM])
        prior = GaussianWeights.independent(
            mean, np.array([constant, deviation, *[1.5] * TOPIC_DIM])
        )
        arms[name] = LogisticArm(prior, math.inf, 200.0)
    return ThompsonSampling(
        arms,
        {"small": 0.1, "large": 1.0},
        ROUTING.cost_weight,
        ROUTING.exploration_floor,
        ROUTING.exploration,
    )


def learning_curve(seed: int, random_part: float) -> Curve:
    """The policy's value after every ``STEP`` ratings."""
    world, rng, bandit = World(seed), np.random.default_rng(seed), new_bandit()
    solicitor = Solicitor(RATE, random_part, random.Random(seed))
    population, qualities = world.draw(np.random.default_rng(999), 1_000)
    worth = qualities - COSTS

    def value() -> float:
        best = (bandit.qualities(population) - COSTS).argmax(axis=1)
        return float(worth[np.arange(len(worth)), best].mean())

    curve, ratings = [value()], 0
    contexts, qualities = world.draw(rng, REQUESTS)
    for start in range(0, REQUESTS, BATCH):
        batch = slice(start, start + BATCH)
        choices = bandit.choose_many(contexts[batch], {}, rng)
        for x, quality, choice in zip(contexts[batch], qualities[batch], choices, strict=True):
            if not solicitor.should_solicit(choice.rating_value, choice.propensity, 2).reason:
                continue
            score = float(rng.random() < quality[NAMES.index(choice.arm)])
            bandit.learn(choice.arm, x, score)
            ratings += 1
            if ratings % STEP == 0:
                curve.append(value())
        if ratings >= BUDGET:
            break
    size = BUDGET // STEP + 1  # a rule that asks for too little learns no more
    return np.array([*curve, *[curve[-1]] * size][:size])


@cache
def mean_curve(random_part: float) -> Curve:
    return np.mean([learning_curve(seed, random_part) for seed in SEEDS], axis=0)


def test_soliciting_learns_more_from_as_many_ratings() -> None:
    by_chance, asked = mean_curve(1.0), mean_curve(ROUTING.solicit_random)
    final = float(by_chance[-10:].mean())
    assert final - by_chance[0] > 0.02  # there is something to learn
    assert asked[-10:].mean() >= final - 0.001
    assert asked.mean() > by_chance.mean()


# The value


def test_a_rating_is_worth_more_the_closer_the_arms_the_wider_and_the_less_noisy() -> None:
    base = value_of_rating([0.9, 0.88], [0.1, 0.1], 0, 0.15)
    assert value_of_rating([0.9, 0.70], [0.1, 0.1], 0, 0.15) < base
    assert value_of_rating([0.9, 0.88], [0.2, 0.1], 0, 0.15) > base
    assert value_of_rating([0.9, 0.88], [0.1, 0.1], 0, 0.50) < base
    # How well the other arm is known does not change what this rating can do.
    assert value_of_rating([0.9, 0.88], [0.1, 0.9], 0, 0.15) == base


def test_it_is_the_logarithm_of_the_expected_gain_of_the_best_score() -> None:
    scores, stds, noise = [0.7, 0.8, 0.75], [0.2, 0.1, 0.3], 0.15
    rng = np.random.default_rng(0)
    for rated in range(3):
        move = stds[rated] ** 2 / np.hypot(stds[rated], noise)
        after = np.tile(scores, (200_000, 1))
        after[:, rated] += rng.normal(0, move, len(after))
        gain = after.max(1).mean() - max(scores)
        assert math.exp(value_of_rating(scores, stds, rated, noise)) == pytest.approx(gain, 0.03)


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_it_ranks_however_far_the_arms_are_apart(noise: float) -> None:
    gaps = np.geomspace(1e-3, 0.9, 400)
    values = [value_of_rating([0.9, 0.9 - gap], [0.004, 0.1], 0, noise) for gap in gaps]
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    assert values[-1] < -10_000  # its exponential is 0 in any floating-point format


def test_it_is_smooth_where_the_series_takes_over() -> None:
    # E[max(0, z + N(0, 1))] at z = -19.999 and z = -20.001, whose slope is Phi(z) / that.
    near, far = (value_of_rating([z, 0.0], [1.0, 1.0], 0, 0.0) for z in (19.999, 20.001))
    assert near - far == pytest.approx(0.002 * 20.1, rel=0.01)


@pytest.mark.parametrize(
    ("scores", "stds", "rated"),
    [
        ([0.5], [0.1], 0),
        ([0.5, 0.4], [0.0, 0.1], 0),
        ([0.5, -math.inf], [0.1, 0.1], 0),
        ([0.5, -math.inf], [0.1, 0.1], 1),
    ],
)
def test_where_nothing_can_change_a_rating_is_worth_nothing(
    scores: list[float], stds: list[float], rated: int
) -> None:
    assert value_of_rating(scores, stds, rated, 0.15) == -math.inf


# The share


def asked_for(
    solicitor: Solicitor, values: NDArray[np.float64] | list[float], propensity: float = 0.5
) -> NDArray[np.bool_]:
    return np.array([bool(solicitor.should_solicit(v, propensity, 2).reason) for v in values])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("offset", [0.0, -50_000.0])
def test_the_share_is_asked_at_any_scale_of_values(share: float, offset: float) -> None:
    solicitor, rng = Solicitor(share, 0.0), np.random.default_rng(0)
    values = offset + rng.normal(size=5_000)
    asked = asked_for(solicitor, values)
    assert asked.mean() == pytest.approx(share, rel=0.2)
    if share < 1:  # once there is something to compare with, the most valuable ones
        assert values[500:][asked[500:]].min() > np.quantile(values, 1 - share) - 0.7


def test_equal_values_keep_the_share() -> None:
    assert asked_for(Solicitor(0.1, 0.0), [0.5] * 1_000).sum() == pytest.approx(100, abs=2)


def test_it_adapts_when_the_router_has_learnt() -> None:
    solicitor, rng = Solicitor(0.1, 0.0), np.random.default_rng(0)
    asked_for(solicitor, rng.normal(size=2_000))
    late = asked_for(solicitor, rng.normal(size=2_000) - 7.0)
    assert late[500:].sum() == pytest.approx(150, abs=30)


def test_no_share_and_no_value_ask_nobody() -> None:
    assert not asked_for(Solicitor(0.0, 0.25), [1.0, 0.5]).any()
    assert not asked_for(Solicitor(1.0, 0.0), [-math.inf] * 3).any()


@pytest.mark.parametrize("random_part", [0.25, 1.0])
def test_the_random_part_is_in_the_share_and_does_not_look_at_values(random_part: float) -> None:
    solicitor, rng = Solicitor(0.1, random_part, random.Random(1)), np.random.default_rng(0)
    values = rng.normal(size=40_000)
    asks = [solicitor.should_solicit(v, 0.5, 2) for v in values]
    assert np.mean([bool(a.reason) for a in asks]) == pytest.approx(0.1, rel=0.05)
    at_random = np.array([a.reason == "random" for a in asks])
    assert at_random.mean() == pytest.approx(0.1 * random_part, rel=0.12)
    assert abs(values[at_random].mean()) < 3 / math.sqrt(at_random.sum())


def test_a_worthless_rating_is_asked_for_at_random_all_the_same() -> None:
    solicitor = Solicitor(0.2, 0.5, random.Random(2))
    assert asked_for(solicitor, [-math.inf] * 5_000).mean() == pytest.approx(0.1, rel=0.15)


def test_the_probability_is_the_frequency_with_which_an_answer_is_asked_for() -> None:
    rng, dice = np.random.default_rng(3), random.Random(3)
    solicitor = Solicitor(0.1, 0.4, dice)
    seldom = 0.05
    asks = []
    for value in rng.normal(size=60_000):
        propensity = seldom if rng.random() < seldom else 1 - seldom
        asks.append((propensity, solicitor.should_solicit(value + propensity, propensity, 2)))
    assert np.mean([bool(a.reason) for _, a in asks]) == pytest.approx(0.1, rel=0.05)
    for propensity in (seldom, 1 - seldom):
        own = [a for p, a in asks if p == propensity]
        # The inverse of the probability restores how many there are.
        restored = sum(1 / a.probability for a in own if a.reason)
        assert restored == pytest.approx(len(own), rel=0.15)
    rare = [a for p, a in asks if p == seldom and a.probability < 1]
    assert rare[0].probability == pytest.approx(0.04 * (1 + 10) / 2)
    assert {a.reason for _, a in asks if a.probability == 1} == {"random", "value"}
