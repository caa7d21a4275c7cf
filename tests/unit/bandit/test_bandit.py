from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from echolm.bandit.arms import BayesianLinearArm
from echolm.bandit.thompson import ThompsonSampling, _normal_cdf, probability_of_best
from echolm.primitives import Choice
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

D = 4
ROUNDS = 800
SEEDS = range(5)
COSTS = {"small": 0.1, "large": 1.0, "medium": 0.4}
RATE = 0.3


def arm(prior: float = 0.5, **options: float) -> BayesianLinearArm:
    mean = np.zeros(D)
    mean[0] = prior
    settings = {"prior_precision": 4.0, "noise": 0.15, "discount": 0.999} | options
    return BayesianLinearArm(mean, **settings)


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
    """The arm that was poor becomes good: a discounting learner finds out, a static one is slow."""

    def share_after_drift(discount: float) -> float:
        learner = ThompsonSampling(
            {n: arm(0.5, discount=discount) for n in ("small", "large")},
            {"small": 0.0, "large": 0.0},
            RATE,
            0.02,
        )
        rng = np.random.default_rng(5)
        x = np.array([1.0, 0.5, 0.5, 0.5], dtype=np.float32)
        picks = []
        for step in range(3_000):
            name = learner.choose(x, {}, rng).arm
            good = "large" if step < 1_500 else "small"
            learner.learn(
                name, x, float(np.clip((0.8 if name == good else 0.6) + rng.normal(0, 0.1), 0, 1))
            )
            picks.append(name == "small")
        return float(np.mean(picks[-700:]))

    assert share_after_drift(0.99) > 0.85
    assert share_after_drift(1.0) < 0.5


def monte_carlo(means: list[float], stds: list[float]) -> np.ndarray:  # type: ignore[type-arg]
    draws = np.random.default_rng(0).normal(means, stds, size=(200_000, len(means)))
    return np.bincount(draws.argmax(axis=1), minlength=len(means)) / len(draws)


@pytest.mark.parametrize(
    ("means", "stds"),
    [
        ([0.5, 0.6], [0.1, 0.1]),
        ([0.9, 0.2], [0.05, 0.7]),
        ([0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1]),
        ([0.5, 0.6, 0.4, 0.55], [0.2, 0.1, 0.3, 0.15]),
        ([0.9, 0.1, 0.2, 0.85], [0.05, 0.2, 0.1, 0.1]),
    ],
)
def test_probability_of_best_equals_simulation(means: list[float], stds: list[float]) -> None:
    assert probability_of_best(means, np.array(stds)) == pytest.approx(
        monte_carlo(means, stds), abs=0.01
    )


@given(
    hnp.arrays(np.float64, st.integers(1, 5), elements=st.floats(-3, 3)),
    st.floats(1e-6, 2.0),
)
def test_probabilities_are_probabilities(means: np.ndarray, std: float) -> None:  # type: ignore[type-arg]
    probabilities = probability_of_best(means, np.full(len(means), std))
    assert probabilities.sum() == pytest.approx(1.0)
    assert (probabilities >= 0).all()


def test_arms_without_doubt_are_certain() -> None:
    assert probability_of_best([0.1, 0.9, 0.2], np.zeros(3)) == pytest.approx([0, 1, 0])
    assert probability_of_best([0.3], np.ones(1)) == pytest.approx([1])


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
        learner = ThompsonSampling(arms, {"good": 0, "poor": 0}, RATE, 0.0, exploration)
        shares.append(learner.choose(x, {}, np.random.default_rng(0)).probabilities["good"])
    assert 0.5 < shares[0] < shares[1] < shares[2] == pytest.approx(1.0)


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
    mean, std = one.predict(x)
    for _ in range(200):
        one.learn(x, 0.9)
    assert one.predict(x)[0] == pytest.approx(0.9, abs=0.02)
    assert one.predict(x)[1] < std / 5
    assert mean == pytest.approx(0.5)


def test_without_discount_it_is_bayesian_regression() -> None:
    rng = np.random.default_rng(2)
    X, y = rng.random((40, D)), rng.random(40)
    one = arm(0.5, discount=1.0, noise=0.2, prior_precision=3.0)
    for x, reward in zip(X, y, strict=True):
        one.learn(x, float(reward))
    A = 3.0 * np.eye(D) + X.T @ X / 0.04
    mean = np.linalg.solve(A, 3.0 * np.array([0.5, 0, 0, 0]) + X.T @ y / 0.04)
    x = rng.random(D)
    assert one.predict(x) == pytest.approx((mean @ x, np.sqrt(x @ np.linalg.solve(A, x))))


@pytest.mark.parametrize("discount", [1.0, 0.95])
def test_correcting_a_rating_equals_having_learnt_the_new_one(discount: float) -> None:
    rng = np.random.default_rng(4)
    xs, rewards = rng.random((9, D)), rng.random(9)
    corrected, direct = arm(discount=discount), arm(discount=discount)
    for i, (x, reward) in enumerate(zip(xs, rewards, strict=True)):
        corrected.learn(x, float(reward))
        direct.learn(x, 0.05 if i == 3 else float(reward))
    corrected.correct(xs[3], float(rewards[3]), 0.05, learned_at=4)
    assert corrected.mean == pytest.approx(direct.mean)
    assert np.allclose(corrected.posterior.A, direct.posterior.A)


def test_forgetting_returns_to_the_prior() -> None:
    one = arm(0.5, discount=0.9)
    x, other = np.array([1.0, 0, 0, 0]), np.array([0, 1.0, 0, 0])
    for _ in range(30):
        one.learn(x, 1.0)
    sure = one.predict(x)[1]
    for _ in range(300):
        one.learn(other, 0.0)
    assert one.predict(x)[1] == pytest.approx(0.5, abs=0.02) != sure
    assert one.predict(x)[0] == pytest.approx(0.5, abs=0.02)


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
    arms: dict[str, BayesianLinearArm],
    seed: int,
    joins: tuple[int, str, BayesianLinearArm] | None = None,
    floor: float = 0.02,
) -> np.ndarray:  # type: ignore[type-arg]
    """Regret against the oracle of the arms that are there, per round; every answer is rated."""
    rng = np.random.default_rng(seed)

    def learner_of(arms: dict[str, BayesianLinearArm]) -> ThompsonSampling:
        return ThompsonSampling(arms, dict.fromkeys(arms, 0.0), 0.0, floor, 0.5)

    learner, out = learner_of(arms), []
    for step in range(world.rounds):
        if joins is not None and step == joins[0]:
            learner = learner_of({**learner.arms, joins[1]: joins[2]})
        x = np.array([1.0, *rng.random(D - 1)], dtype=np.float32)
        name = learner.choose(x, {}, rng).arm
        value = world.value(name, x, step)
        learner.learn(name, x, float(np.clip(value + rng.normal(0, 0.1), 0, 1)))
        out.append(max(world.value(n, x, step) for n in learner.arms) - value)
    return np.array(out)


THREE = ("small", "medium", "large")


def test_regret_grows_ever_more_slowly_with_three_arms() -> None:
    def arms() -> dict[str, BayesianLinearArm]:
        return {n: arm(0.5, discount=1.0) for n in THREE}

    world = Changing(1_600, drifts=False)
    regret = np.mean([lost(world, arms(), seed, floor=0.0) for seed in SEEDS], axis=0)
    growth = [part.mean() for part in np.split(regret, [100, 400])]  # 100, 300 and 1,200 rounds
    assert growth[0] > 2 * growth[1]
    assert growth[1] > 2 * growth[2]


def test_after_an_arm_gets_worse_and_better_again_regret_returns() -> None:
    for seed in SEEDS:
        regret = lost(
            Changing(3_000, drifts=True), {n: arm(0.5, discount=0.99) for n in THREE}, seed
        )
        before = regret[700:1_000].mean()
        # The drop is seen at once, the recovery once the arm's posterior has widened again.
        assert regret[1_000:1_010].mean() > 3 * before
        assert regret[1_300:2_000].mean() < before + 0.03, seed
        assert regret[2_700:].mean() < before + 0.03, seed


def test_an_arm_that_nobody_draws_widens_again_as_others_are_rated() -> None:
    learner = ThompsonSampling(
        {n: arm(0.5, discount=0.95) for n in THREE}, dict.fromkeys(THREE, 0.0), 0.0, 0.0
    )
    x = np.array([1.0, 0.5, 0.5, 0.5])
    for _ in range(30):
        learner.learn("small", x, 0.0)
    mean, std = learner.arms["small"].predict(x)
    for _ in range(200):
        learner.learn("large", x, 0.8)
    later, wider = learner.arms["small"].predict(x)
    assert wider > 3 * std
    assert mean < 0.1
    assert later == pytest.approx(0.5, abs=0.01)
    assert learner.arms["small"].updates == learner.arms["large"].updates == 230


def test_a_new_arm_is_found_to_be_better() -> None:
    for seed in SEEDS:
        arms = {n: arm(0.5, discount=1.0) for n in THREE}
        world = Changing(2_000, drifts=False)
        regret = lost(world, arms, seed, joins=(1_000, "new", arm(0.5, prior_precision=1.0)))
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
        assert choice.quality == pytest.approx(
            min(1.0, max(0.0, learner.arms[choice.arm].predict(x)[0]))
        )


@pytest.mark.parametrize("change", ["learn", "correct", "restore", "forget"])
def test_a_decision_sees_what_was_learnt_since_the_last(change: str) -> None:
    learner = bandit()
    x = np.array([1.0, 0.5, 0.5, 0.5])
    learner.learn("small", x, 0.2)
    other = arm()
    other.learn(x, 1.0)
    before = learner.choose(x, {}, np.random.default_rng(0)).probabilities
    small = learner.arms["small"]
    if change == "learn":
        learner.learn("small", x, 1.0)
    elif change == "correct":
        small.correct(x, 0.2, 1.0, learned_at=1)
    elif change == "restore":
        small.restore(other.state())
    else:
        for _ in range(2_000):
            small.forget()
    assert learner.choose(x, {}, np.random.default_rng(0)).probabilities["small"] > (
        before["small"] + 0.01
    )


def test_the_normal_distribution_function_is_exact_to_seven_digits() -> None:
    z = np.linspace(-12, 12, 1_001)
    exact = [0.5 * math.erfc(-v / math.sqrt(2)) for v in z]
    assert _normal_cdf(z) == pytest.approx(exact, rel=2e-7)
