from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from echolm.bandit.arms import LogisticArm
from echolm.bandit.thompson import ThompsonSampling, _normal_cdf, probability_of_best
from echolm.learning.logistic import GaussianWeights, logit, rating_site
from echolm.primitives import Choice
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

D = 4
ROUNDS = 800
SEEDS = range(5)
COSTS = {"small": 0.1, "large": 1.0, "medium": 0.4}
RATE = 0.3


HOUR = 3_600_000


def arm(
    prior: float = 0.5, std: float = 1.5, half_life_h: float = 1e9, least_kept: float = 20.0
) -> LogisticArm:
    mean = np.zeros(D)
    mean[0] = logit(prior)
    weights = GaussianWeights.independent(mean, np.full(D, std))
    return LogisticArm(weights, half_life_h * HOUR, least_kept)


def rate(one: LogisticArm, x: np.ndarray, score: float) -> None:  # type: ignore[type-arg]
    mean, std = one.predict(x)
    one.learn(x, rating_site(mean, std**2, score))


def bandit(names: tuple[str, ...] = ("small", "large"), floor: float = 0.01) -> ThompsonSampling:
    costs = {name: COSTS.get(name, 1.0) for name in names}
    return ThompsonSampling({name: arm() for name in names}, costs, RATE, floor)


class World:
    """Contexts, and the quality that each LLM's answer has in them.

    The small LLM is good where x[1] (a relevant example) is high, the large one everywhere, and
    the medium one where x[2] is high.
    """

    def __init__(self, names: tuple[str, ...], seed: int) -> None:
        self.names = names
        self.rng = np.random.default_rng(seed)

    def context(self) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([1.0, *self.rng.random(D - 1)], dtype=np.float32)

    def quality(self, name: str, x: np.ndarray) -> float:  # type: ignore[type-arg]
        if name == "small":
            return float(0.2 + 0.75 * x[1])
        return 0.9 if name == "large" else float(0.3 + 0.6 * x[2])

    def value(self, name: str, x: np.ndarray) -> float:  # type: ignore[type-arg]
        return self.quality(name, x) - RATE * COSTS[name]

    def rating(self, name: str, x: np.ndarray) -> float:  # type: ignore[type-arg]
        return float(np.clip(self.quality(name, x) + self.rng.normal(0, 0.1), 0, 1))


Policy = Callable[[np.ndarray, World], str]  # type: ignore[type-arg]


def play(world: World, policy: Policy, learn: Callable[..., None] | None) -> np.ndarray:  # type: ignore[type-arg]
    """The value lost against the oracle, and against each fixed arm, per round."""
    lost = []
    for _ in range(ROUNDS):
        x = world.context()
        name = policy(x, world)
        if learn is not None:
            learn(name, x, world.rating(name, x))
        values = [world.value(n, x) for n in world.names]
        lost.append(
            [max(values) - world.value(name, x), *(v - world.value(name, x) for v in values)]
        )
    return np.array(lost)


def regrets(
    names: tuple[str, ...], make: Callable[[int], tuple[Policy, Callable[..., None] | None]]
) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """For each seed: mean regret of the last half against the oracle and the best fixed arm."""
    oracle, fixed = [], []
    for seed in SEEDS:
        policy, learn = make(seed)
        lost = play(World(names, seed), policy, learn)[ROUNDS // 2 :].mean(axis=0)
        oracle.append(lost[0])
        fixed.append(lost[1:].max())
    return np.array(oracle), np.array(fixed)


def thompson(names: tuple[str, ...]) -> Callable[[int], tuple[Policy, Callable[..., None]]]:
    def make(seed: int) -> tuple[Policy, Callable[..., None]]:
        learner = bandit(names)
        rng = np.random.default_rng(1_000 + seed)
        return (lambda x, world: learner.choose(x, {}, rng).arm), learner.learn

    return make


def learns_well(oracle: np.ndarray, fixed: np.ndarray) -> bool:  # type: ignore[type-arg]
    """Little lost against the oracle, more won than with the best fixed arm, for every seed."""
    return bool(oracle.mean() < 0.02 and oracle.std() < 0.01 and (fixed < -0.03).all())


@pytest.mark.parametrize("names", [("small", "large"), ("small", "large", "medium")])
def test_it_loses_little_against_the_oracle_and_beats_the_best_fixed_arm(
    names: tuple[str, ...],
) -> None:
    oracle, fixed = regrets(names, thompson(names))
    assert learns_well(oracle, fixed), (oracle, fixed)


@pytest.mark.parametrize("broken", ["random", "unlearning", "ignores-context"])
def test_a_broken_learner_misses_the_same_target(broken: str) -> None:
    names = ("small", "large")

    def make(seed: int) -> tuple[Policy, Callable[..., None] | None]:
        rng = np.random.default_rng(1_000 + seed)
        learner = bandit(names)
        if broken == "random":
            return (lambda x, world: str(rng.choice(names))), None
        if broken == "unlearning":
            return (lambda x, world: learner.choose(x, {}, rng).arm), None
        constant = np.eye(D, dtype=np.float32)[0]
        return (
            lambda x, world: learner.choose(constant, {}, rng).arm,
            lambda name, x, reward: learner.learn(name, constant, reward),
        )

    oracle, fixed = regrets(names, make)
    assert not learns_well(oracle, fixed), (oracle, fixed)


def test_it_follows_drift_when_it_forgets() -> None:
    """The arm that was poor becomes good: a forgetting learner finds out, a static one is slow."""

    def share_after_drift(half_life_h: float) -> float:
        arms = {n: arm(0.5, half_life_h=half_life_h) for n in ("small", "large")}
        learner = ThompsonSampling(arms, {"small": 0.0, "large": 0.0}, RATE, 0.02)
        rng = np.random.default_rng(5)
        x = np.array([1.0, 0.5, 0.5, 0.5], dtype=np.float32)
        picks = []
        for step in range(3_000):
            learner.forget(HOUR + step * HOUR // 60)
            name = learner.choose(x, {}, rng).arm
            good = "large" if step < 2_400 else "small"
            quality = 0.8 if name == good else 0.5
            learner.learn(name, x, float(rng.random() < quality))
            picks.append(name == "small")
        return float(np.mean(picks[-300:]))

    assert share_after_drift(1.0) > 0.8
    assert share_after_drift(1e9) < 0.5


def best(
    means: list[float],
    stds: list[float],
    penalties: list[float] | None = None,
    eligible: list[bool] | None = None,
) -> np.ndarray:  # type: ignore[type-arg]
    n = len(means)
    return probability_of_best(
        np.array([means]),
        np.array([stds]),
        np.zeros(n) if penalties is None else np.array(penalties),
        np.array([[True] * n if eligible is None else eligible]),
    )[0]


@pytest.mark.parametrize(
    ("means", "stds", "penalties"),
    [
        ([0.5, 0.6], [0.4, 0.4], [0.0, 0.0]),
        ([2.0, 3.0], [0.8, 0.5], [0.0, 0.1]),
        ([0.9, -1.0], [0.3, 2.0], [0.05, 0.5]),
        ([0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.4, 0.4], [0.0, 0.0, 0.0, 0.0]),
        ([0.5, 0.9, -0.4, 1.5], [0.8, 0.4, 1.3, 0.6], [0.0, 0.1, 0.02, 0.2]),
        ([3.0, 0.0], [0.1, 0.1], [1.5, 0.0]),
    ],
)
def test_probability_of_best_equals_simulation(
    means: list[float], stds: list[float], penalties: list[float]
) -> None:
    draws = np.random.default_rng(0).normal(means, stds, size=(200_000, len(means)))
    winners = (1 / (1 + np.exp(-draws)) - penalties).argmax(axis=1)
    simulated = np.bincount(winners, minlength=len(means)) / len(draws)
    assert best(means, stds, penalties) == pytest.approx(simulated, abs=0.012)


def test_a_bonus_counts_for_its_request_only_and_is_in_the_propensity() -> None:
    chooser, x = bandit(), np.array([[1.0, 0.5, 0.5, 0.5]] * 2, dtype=np.float32)
    bonuses = np.array([[0.0, 0.0], [0.0, 0.5]])
    plain, raised = chooser.choose_many(x, {}, np.random.default_rng(0), None, bonuses)
    [alone] = chooser.choose_many(x[:1], {}, np.random.default_rng(0))
    assert plain.probabilities == alone.probabilities
    assert raised.probabilities["large"] > plain.probabilities["large"] + 0.1
    assert raised.propensity == raised.probabilities[raised.arm]


def test_a_cost_weight_counts_for_its_request_only_and_is_in_the_propensity() -> None:
    chooser, x = bandit(), np.array([[1.0, 0.5, 0.5, 0.5]] * 3, dtype=np.float32)
    rng = np.random.default_rng(0)
    choices = chooser.choose_many(x, {}, rng, cost_weights=[None, 0.0, 5.0])
    for choice, weight in zip(choices, (chooser.cost_weight, 0.0, 5.0), strict=True):
        own = ThompsonSampling(chooser.arms, chooser.costs, weight, chooser._floor)
        [alone] = own.choose_many(x[:1], {}, np.random.default_rng(0))
        assert choice.probabilities == pytest.approx(alone.probabilities)
        assert choice.propensity == choice.probabilities[choice.arm]
    assert choices[1].probabilities["large"] > choices[0].probabilities["large"]
    assert choices[2].probabilities["large"] == 0.0  # costs more than any quality is worth


def test_penalties_may_differ_between_requests() -> None:
    means, stds = np.array([[0.5, 0.6]] * 2), np.full((2, 2), 0.4)
    penalties = np.array([[0.0, 0.0], [0.0, 0.3]])
    both = probability_of_best(means, stds, penalties, np.ones((2, 2), dtype=np.bool_))
    for row, alone in zip(both, penalties.tolist(), strict=True):
        np.testing.assert_allclose(row, best([0.5, 0.6], [0.4, 0.4], alone))


@given(
    hnp.arrays(np.float64, st.integers(1, 5), elements=st.floats(-8, 8)),
    st.floats(1e-6, 3.0),
    st.floats(0.0, 2.0),
)
def test_probabilities_are_probabilities(
    means: np.ndarray,  # type: ignore[type-arg]
    std: float,
    penalty: float,
) -> None:
    n = len(means)
    eligible = [k % 2 == 0 for k in range(n)]
    probabilities = best(list(means), [std] * n, [penalty * k for k in range(n)], eligible)
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= 0).all()
    assert not probabilities[1::2].any()


def test_arms_without_doubt_are_certain() -> None:
    assert best([0.1, 0.9, 0.2], [0, 0, 0]) == pytest.approx([0, 1, 0])
    assert best([0.3], [1]) == pytest.approx([1])
    assert best([0.1, 0.9, 0.2], [0, 0, 0], eligible=[True, False, True]) == pytest.approx(
        [0, 0, 1]
    )


@given(st.integers(1, 6), st.floats(0, 0.15), st.integers(0, 2**32 - 1))
def test_propensities_sum_to_one_and_keep_the_floor(n: int, floor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = tuple(f"m{i}" for i in range(n))
    learner = bandit(names, floor)
    for _ in range(5):
        learner.learn(str(rng.choice(names)), rng.random(D), float(rng.random()))
    choice = learner.choose(rng.random(D), {names[0]: float(rng.random() * 5)}, rng)
    assert sum(choice.probabilities.values()) == pytest.approx(1.0)
    assert min(choice.probabilities.values()) >= floor - 1e-9
    assert choice.propensity == choice.probabilities[choice.arm]
    assert 0 <= choice.quality <= 1


def test_the_floor_falls_with_what_cost_leaves_to_win() -> None:
    costs = {"cheap": 0.1, "middle": 0.35, "strong": 1.0}
    arms = {"cheap": arm(0.99, 0.1), "middle": arm(0.01, 0.1), "strong": arm(0.01, 0.1)}
    x = np.eye(D)[0]
    for cost_weight, middle, strong in ((0.0, 0.02, 0.02), (1.0, 0.015, 0.002), (2.0, 0.01, 0.0)):
        learner = ThompsonSampling(arms, costs, cost_weight, 0.02, 0.0)
        drawn = learner.choose(x, {}, np.random.default_rng(0)).probabilities
        assert drawn["middle"] == pytest.approx(middle)
        assert drawn["strong"] == pytest.approx(strong)
        assert sum(drawn.values()) == pytest.approx(1.0)


def test_an_arm_is_drawn_as_often_as_its_propensity_says() -> None:
    learner = bandit(("small", "large", "medium"), floor=0.05)
    x = np.array([1, 0.7, 0.2, 0.1], dtype=np.float32)
    for _ in range(3):
        learner.learn("large", x, 0.7)
    rng = np.random.default_rng(3)
    choices = [learner.choose(x, {}, rng) for _ in range(4_000)]
    expected = choices[0].probabilities
    for name, probability in expected.items():
        assert np.mean([c.arm == name for c in choices]) == pytest.approx(probability, abs=0.03)
    assert min(expected.values()) > 0.05
    assert max(expected.values()) < 0.9


def test_less_exploration_makes_a_choice_firmer_and_none_makes_it_certain() -> None:
    x = np.array([1, 0.7, 0.2, 0.1], dtype=np.float32)
    shares = []
    for exploration in (1.0, 0.25, 0.0):
        arms = {"good": arm(0.7), "poor": arm(0.5)}
        for one in arms.values():
            one.evidence = (50.0, 50.0)
        learner = ThompsonSampling(arms, {"good": 0, "poor": 0}, RATE, 0.0, exploration)
        shares.append(learner.choose(x, {}, np.random.default_rng(0)).probabilities["good"])
    assert 0.5 < shares[0] < shares[1] < shares[2] == pytest.approx(1.0)


def test_what_is_not_known_yet_is_explored_without_caution() -> None:
    """Poor answers without examples must not keep an LLM from being tried with them."""
    arms = {"good": arm(0.8, std=0.1), "poor": arm(0.5)}
    arms["poor"].evidence = (500.0, 3.0)
    arms["good"].evidence = (500.0, 500.0)
    learner = ThompsonSampling(arms, {"good": 0, "poor": 0}, RATE, 0.0, 0.25)
    without, with_examples = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])
    shares = [
        learner.choose(x, {}, np.random.default_rng(0)).probabilities["poor"]
        for x in (without, with_examples)
    ]
    assert shares[0] < 0.01
    assert shares[1] > 0.2


def test_load_and_cost_take_probability_from_the_expensive_arm() -> None:
    x = np.array([1, 0.5, 0.5, 0.5], dtype=np.float32)
    rng = np.random.default_rng(0)
    calm = bandit().choose(x, {}, rng).probabilities
    assert calm["small"] > calm["large"]
    loaded = bandit().choose(x, {"large": 0.3}, rng).probabilities
    assert loaded["large"] < calm["large"] - 0.05


def test_equal_arms_mean_an_unsure_router() -> None:
    x = np.array([1, 0.5, 0.5, 0.5], dtype=np.float32)
    free = ThompsonSampling({"a": arm(), "b": arm()}, {"a": 0, "b": 0}, RATE, 0.0)
    before = free.choose(x, {}, np.random.default_rng(0)).probabilities
    assert before["a"] == pytest.approx(0.5, abs=1e-6)
    for _ in range(50):
        free.learn("a", x, 1.0)
        free.learn("b", x, 0.0)
    after = free.choose(x, {}, np.random.default_rng(0)).probabilities
    assert after["a"] == pytest.approx(1.0, abs=0.01)


def test_the_same_seed_gives_the_same_choices_and_another_does_not() -> None:
    def run(seed: int) -> list[Choice]:
        rng, learner, out = np.random.default_rng(seed), bandit(), []
        for i in range(60):
            choice = learner.choose(np.array([1, i % 3, 0, 0.5]), {}, rng)
            learner.learn(choice.arm, np.array([1, i % 3, 0, 0.5]), 0.6)
            out.append(choice)
        return out

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_rating_moves_the_estimate_and_narrows_it() -> None:
    one = arm()
    x = np.array([1.0, 0.5, 0.5, 0.5])
    _, std = one.predict(x)
    assert one.quality(x) == pytest.approx(0.5)
    for k in range(300):
        rate(one, x, 1.0 if k % 10 else 0.0)
    assert one.quality(x) == pytest.approx(0.9, abs=0.02)
    assert one.predict(x)[1] < std / 5


def test_the_posterior_is_as_wide_as_the_estimates_of_many_samples_scatter() -> None:
    """With 0/1 ratings a fixed noise claims to know more than it does."""
    x = np.array([1.0, 0.0, 0.0, 0.0])
    found = []
    for seed in range(300):
        one, rng = arm(std=3.0), np.random.default_rng(seed)
        for _ in range(100):
            rate(one, x, float(rng.random() < 0.8))
        found.append(one.predict(x))
    means, stds = np.array(found).T
    assert stds.mean() == pytest.approx(means.std(), rel=0.15)
    assert means.mean() == pytest.approx(logit(0.8), abs=0.06)


def test_it_is_bayesian_logistic_regression() -> None:
    """Against the posterior's mode, found by Newton's method on all ratings at once."""
    rng = np.random.default_rng(2)
    X = np.hstack([np.ones((200, 1)), rng.normal(size=(200, D - 1))])
    truth = np.array([0.5, 1.0, -1.0, 0.3])
    y = (rng.random(200) < 1 / (1 + np.exp(-X @ truth))).astype(float)
    one = arm(std=2.0)
    for x, score in zip(X, y, strict=True):
        rate(one, x, float(score))
    theta = np.zeros(D)
    for _ in range(30):
        p = 1 / (1 + np.exp(-X @ theta))
        hessian = X.T @ (X * (p * (1 - p))[:, None]) + np.eye(D) / 4.0
        theta += np.linalg.solve(hessian, X.T @ (y - p) - theta / 4.0)
    # Online the order counts a little, and a mean is not a mode.
    assert one.weights.mean == pytest.approx(theta, abs=0.2)
    assert np.sqrt(np.diag(one.weights.covariance)) == pytest.approx(
        np.sqrt(np.diag(np.linalg.inv(hessian))), rel=0.15
    )


def test_evidence_that_is_taken_out_leaves_the_rest() -> None:
    rng = np.random.default_rng(4)
    xs, scores = rng.random((9, D)), rng.random(9)
    one, without = arm(), arm()
    sites = []
    for i, (x, score) in enumerate(zip(xs, scores, strict=True)):
        mean, std = one.predict(x)
        sites.append(rating_site(mean, std**2, float(score)))
        one.learn(x, sites[-1])
        if i != 3:
            without.learn(x, sites[-1])
    one.unlearn(xs[3], sites[3])
    assert one.weights.mean == pytest.approx(without.weights.mean)
    assert np.allclose(one.weights.covariance, without.weights.covariance)
    assert one.evidence == without.evidence


def test_forgetting_widens_the_estimate_and_keeps_its_mean() -> None:
    """A pull to the prior would hold a seldom drawn arm at what was expected of it at first."""
    one = arm(0.5, half_life_h=1.0, least_kept=20.0)
    x = np.array([1.0, 0, 0, 0])
    one.forget(HOUR)
    for _ in range(100):
        rate(one, x, 1.0)
    mean, std = one.predict(x)
    one.forget(2 * HOUR)
    halved = one.predict(x)
    assert halved[0] == pytest.approx(mean)
    assert std < halved[1] < 1.5
    one.forget(2_000 * HOUR)
    kept = one.predict(x)[1]
    one.forget(9_000 * HOUR)  # a fifth of the ratings stays, however old it is
    assert one.predict(x) == pytest.approx((mean, kept))
    assert one.decay == pytest.approx(0.2)
    assert one.predict(np.array([0, 1.0, 0, 0]))[1] == pytest.approx(1.5)


def test_time_that_goes_back_forgets_nothing() -> None:
    one = arm(half_life_h=1.0)
    x = np.array([1.0, 0, 0, 0])
    one.forget(10 * HOUR)
    for _ in range(100):
        rate(one, x, 1.0)
    before = one.predict(x)
    one.forget(2 * HOUR)
    assert one.predict(x) == before


def test_a_prior_that_ratings_contradict_is_outweighed() -> None:
    """Four LLMs, of which a cheap one is as good as the strongest, which more was expected of."""
    names = {"a": 0.7, "b": 0.8, "c": 0.8, "strongest": 0.9}
    quality = {"a": 0.925, "b": 0.6, "c": 0.7, "strongest": 0.934}
    costs = {"a": 0.034, "b": 0.1, "c": 0.3, "strongest": 1.0}
    for seed in SEEDS:
        arms = {n: arm(p, half_life_h=0.1) for n, p in names.items()}
        learner = ThompsonSampling(arms, costs, 0.05, 0.005, 0.5)
        rng, x = np.random.default_rng(seed), np.array([1.0, 0, 0, 0])
        picks = []
        for step in range(2_000):
            learner.forget(1_000 + step * 100)
            name = learner.choose(x, {}, rng).arm
            learner.learn(name, x, float(rng.random() < quality[name]))
            picks.append(name)
        assert np.mean([n == "a" for n in picks[-500:]]) > 0.6, seed


def test_graded_ratings_teach_faster_than_right_and_wrong() -> None:
    x = np.array([1.0, 0, 0, 0])

    def learnt(noise: float | None) -> ThompsonSampling:
        learner, rng = bandit(("a", "b")), np.random.default_rng(0)
        for _ in range(200):
            graded = 0.7 + rng.normal(0, noise) if noise else float(rng.random() < 0.7)
            learner.learn("a", x, float(np.clip(graded, 0, 1)))
        return learner

    coin, graded = learnt(None), learnt(0.05)
    assert coin.dispersion > 0.8
    assert graded.dispersion < 0.25
    assert graded.arms["a"].predict(x)[1] < 0.6 * coin.arms["a"].predict(x)[1]
    assert graded.arms["a"].quality(x) == pytest.approx(0.7, abs=0.02)


def test_an_arm_that_is_not_eligible_is_never_drawn() -> None:
    learner, rng = bandit(("small", "large", "medium")), np.random.default_rng(0)
    X = np.tile([1.0, 0.5, 0.5, 0.5], (300, 1))
    eligible = np.tile([False, True, True], (300, 1))
    choices = learner.choose_many(X, {}, rng, eligible)
    assert {choice.arm for choice in choices} == {"large", "medium"}
    assert all(choice.probabilities["small"] == 0.0 for choice in choices)
    assert sum(choices[0].probabilities.values()) == pytest.approx(1.0)


def test_a_floor_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1/2"):
        bandit(floor=0.6)


def test_an_unknown_arm_cannot_learn() -> None:
    with pytest.raises(KeyError):
        bandit().learn("nobody", np.ones(D), 1.0)


# Many arms that change


class Changing:
    """Three LLMs or more, of which one gets worse for a while, and one comes later.

    ``medium`` is the best in half of the contexts, then useless between a third and two thirds of
    the time; what it loses then ``large`` has.
    """

    def __init__(self, rounds: int, drifts: bool) -> None:
        self.rounds, self.drifts = rounds, drifts

    def value(self, name: str, x: np.ndarray, step: int) -> float:  # type: ignore[type-arg]
        if name == "medium":
            worse = self.drifts and self.rounds / 3 <= step < self.rounds * 2 / 3
            return 0.2 if worse else float(0.55 + 0.45 * x[1])
        return {"small": 0.3, "large": 0.7, "new": 0.85}[name]


def lost(
    world: Changing,
    arms: dict[str, LogisticArm],
    seed: int,
    joins: tuple[int, str, LogisticArm] | None = None,
    floor: float = 0.02,
) -> np.ndarray:  # type: ignore[type-arg]
    """Regret against the oracle of the arms that are there, per round; every answer is rated."""
    rng = np.random.default_rng(seed)

    def learner_of(arms: dict[str, LogisticArm]) -> ThompsonSampling:
        return ThompsonSampling(arms, dict.fromkeys(arms, 0.0), 0.0, floor, 0.5)

    learner, out = learner_of(arms), []
    for step in range(world.rounds):
        if joins is not None and step == joins[0]:
            learner = learner_of({**learner.arms, joins[1]: joins[2]})
        x = np.array([1.0, *rng.random(D - 1)], dtype=np.float32)
        learner.forget(HOUR + step * HOUR // 60)
        name = learner.choose(x, {}, rng).arm
        value = world.value(name, x, step)
        learner.learn(name, x, float(np.clip(value + rng.normal(0, 0.1), 0, 1)))
        out.append(max(world.value(n, x, step) for n in learner.arms) - value)
    return np.array(out)


THREE = ("small", "medium", "large")


def test_regret_grows_ever_more_slowly_with_three_arms() -> None:
    def arms() -> dict[str, LogisticArm]:
        return {n: arm() for n in THREE}

    world = Changing(1_600, drifts=False)
    regret = np.mean([lost(world, arms(), seed, floor=0.0) for seed in SEEDS], axis=0)
    growth = [part.mean() for part in np.split(regret, [100, 400])]  # 100, 300 and 1,200 rounds
    assert growth[0] > 2 * growth[1]
    assert growth[1] > 2 * growth[2]


def test_after_an_arm_gets_worse_and_better_again_regret_returns() -> None:
    for seed in SEEDS:
        arms = {n: arm(half_life_h=1.0) for n in THREE}  # 60 rounds
        regret = lost(Changing(3_000, drifts=True), arms, seed)
        before = regret[700:1_000].mean()
        # The drop is seen at once, the recovery once the arm's posterior has widened again.
        assert regret[1_000:1_010].mean() > 3 * before
        assert regret[1_300:2_000].mean() < before + 0.03, seed
        assert regret[2_700:].mean() < before + 0.03, seed


def test_an_arm_that_nobody_draws_widens_again_as_time_goes_on() -> None:
    arms = {n: arm(half_life_h=1.0) for n in THREE}
    learner = ThompsonSampling(arms, dict.fromkeys(THREE, 0.0), 0.0, 0.0)
    x = np.array([1.0, 0.5, 0.5, 0.5])
    learner.forget(HOUR)
    for _ in range(200):
        learner.learn("small", x, 0.2)
    mean, std = learner.arms["small"].predict(x)
    for step in range(200):
        learner.forget(HOUR + step * HOUR // 20)
        learner.learn("large", x, 0.8)
    later, wider = learner.arms["small"].predict(x)
    assert wider > 2.5 * std
    assert later == pytest.approx(mean)


def test_a_new_arm_is_found_to_be_better() -> None:
    for seed in SEEDS:
        arms = {n: arm() for n in THREE}
        world = Changing(2_000, drifts=False)
        regret = lost(world, arms, seed, joins=(1_000, "new", arm()))
        assert regret[1_500:].mean() < regret[500:1_000].mean() + 0.02


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_decisions_together_are_those_one_by_one(n: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = tuple(f"m{i}" for i in range(n))
    learner = bandit(names, 0.02)
    for _ in range(6):
        learner.learn(str(rng.choice(names)), rng.random(D), float(rng.random()))
    X, biases = rng.random((rows, D)), {names[0]: 0.1}
    together = learner.choose_many(X, biases, np.random.default_rng(seed))
    one_rng = np.random.default_rng(seed)
    for x, choice in zip(X, together, strict=True):
        alone = learner.choose(x, biases, one_rng)
        assert alone.arm == choice.arm
        assert list(alone.probabilities.values()) == pytest.approx(
            list(choice.probabilities.values())
        )
        assert choice.quality == pytest.approx(learner.arms[choice.arm].quality(x))


@pytest.mark.parametrize("change", ["learn", "unlearn", "restore", "forget", "transform"])
def test_a_decision_sees_what_was_learnt_since_the_last(change: str) -> None:
    arms = {n: arm(half_life_h=1.0) for n in ("small", "large")}
    learner = ThompsonSampling(arms, {"small": 0.1, "large": 1.0}, RATE, 0.01)
    x = np.array([1.0, 0.5, 0.5, 0.5])
    learner.forget(HOUR)
    sites = [learner.learn("small", x, 0.0) for _ in range(40)]
    other = arm()
    rate(other, x, 1.0)
    before = learner.choose(x, {}, np.random.default_rng(0)).probabilities
    small = learner.arms["small"]
    if change == "learn":
        for _ in range(40):
            learner.learn("small", x, 1.0)
    elif change == "unlearn":
        for site in sites:
            small.unlearn(x, site)
    elif change == "restore":
        small.restore(other.state())
    elif change == "forget":
        learner.forget(1_000 * HOUR)
    else:
        small.transform(np.zeros((D, D)))
    assert (
        learner.choose(x, {}, np.random.default_rng(0)).probabilities["small"] > (before["small"])
    )


def test_the_normal_distribution_function_is_exact_to_seven_digits() -> None:
    z = np.linspace(-12, 12, 1_001)
    exact = [0.5 * math.erfc(-v / math.sqrt(2)) for v in z]
    assert _normal_cdf(z) == pytest.approx(exact, rel=2e-7)
