from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from echolm.bandit.arms import BayesianLinearArm
from echolm.bandit.learning import PREFERENCE_MARGIN, BanditLearning
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.feedback import PREFERENCE, RATING, describe
from echolm.learning.learner import Learner
from echolm.primitives import Decision
from echolm.settings import Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.routing import build_bandit
from hypothesis import given, settings
from hypothesis import strategies as st

D = build_bandit(Settings())[0].dimension


def bandit() -> ThompsonSampling:
    return build_bandit(Settings())[1]


def decision(id: str = "a", llm: str = "small_llm", seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).random(D).astype(np.float32)
    return describe(Decision(id, "public", llm, x, 0.5, 0.5, (1,)))


def rating(id: str, score: float, llm: str = "small_llm", seed: int = 0) -> dict[str, Any]:
    return {**decision(id, llm, seed), "score": score}


def estimate(learner: ThompsonSampling, seed: int = 0, llm: str = "small_llm") -> float:
    x = np.random.default_rng(seed).random(D).astype(np.float32)
    return learner.arms[llm].predict(x)[0]


def learnt(*events: tuple[str, Any]) -> tuple[Learner, ThompsonSampling]:
    log, arms = MemoryEventLog(), bandit()
    for kind, body in events:
        log.append(kind, body)
    learner = Learner(log, [BanditLearning(arms)])
    learner.catch_up()
    return learner, arms


def same(one: BayesianLinearArm, two: BayesianLinearArm) -> bool:
    close = np.allclose(one.state()["A"], two.state()["A"])
    return bool(close and np.allclose(one.mean, two.mean))


def test_ratings_reach_the_arm_that_answered_and_no_other() -> None:
    learner, arms = learnt(*[(RATING, rating(str(i), 0.1)) for i in range(20)])
    assert estimate(arms) == pytest.approx(0.1, abs=0.05)
    assert estimate(arms, llm="large_llm") == estimate(bandit(), llm="large_llm")
    assert (learner.applied, learner.skipped, learner.position) == (20, 0, "20")


def history(events: int, seed: int) -> list[tuple[str, Any]]:
    """Ratings, replaced ratings, preferences, and what cannot be used."""
    rng = random.Random(seed)
    made: list[tuple[str, Any]] = []
    for i in range(events):
        kind, llm, n = rng.random(), rng.choice(["small_llm", "large_llm"]), rng.randrange(60)
        if kind < 0.7:
            made.append((RATING, rating(f"{llm}{n}", rng.random(), llm, n)))
        elif kind < 0.9:
            m = rng.randrange(60)
            better, worse = decision(f"{llm}{n}", llm, n), decision(f"small_llm-{m}", seed=m)
            made.append((PREFERENCE, {"better": better, "worse": worse}))
        else:
            made.append((RATING, {"damaged": i}))
    return made


def identical(one: ThompsonSampling, two: ThompsonSampling) -> bool:
    """Whether posteriors are the same, bit by bit."""

    def content(bandit: ThompsonSampling) -> list[Any]:
        found: list[Any] = []
        for arm in bandit.arms.values():
            state = arm.state()
            found += [state["A"].tobytes(), state["b"].tobytes(), state["updates"]]
            found.append(arm.mean.tobytes())
        return found

    return content(one) == content(two)


def test_two_learners_reach_identical_posteriors_whatever_their_batches() -> None:
    log = MemoryEventLog()
    for kind, body in history(200, seed=1):
        log.append(kind, body)
    one, two = bandit(), bandit()
    first, second = (Learner(log, [BanditLearning(arms)]) for arms in (one, two))
    first.catch_up(batch=1_000)
    second.catch_up(batch=7)
    assert identical(one, two)
    assert not identical(one, bandit())
    assert (first.applied, first.skipped) == (second.applied, second.skipped)


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(0, 60))
@settings(max_examples=25)
def test_a_snapshot_and_the_rest_of_the_log_are_the_same_as_all_of_it(
    seed: int, before: int, after: int
) -> None:
    """Also where later ratings replace those before the snapshot."""
    log, events = MemoryEventLog(), history(before + after, seed)
    for kind, body in events[:before]:
        log.append(kind, body)
    learner = Learner(log, [BanditLearning(bandit())], snapshot_every=before)
    learner.catch_up()
    assert log.load_snapshot(learner.snapshot_name) is not None
    for kind, body in events[before:]:
        log.append(kind, body)
    whole, resumed = bandit(), bandit()
    replayed = Learner(log, [BanditLearning(whole)])
    replayed.catch_up()
    restarted = Learner(log, [BanditLearning(resumed)], snapshot_every=1_000)
    assert restarted.catch_up() == after
    assert identical(whole, resumed)
    assert (restarted.applied, restarted.skipped) == (replayed.applied, replayed.skipped)


@pytest.mark.parametrize(
    "changed",
    [
        {"routing": {"noise": 0.3}},
        {"routing": {"discount": 0.9}},
        {"routing": {"prior_ratings": 3.0}},
        {"routing": {"projection_dim": 4}},
        {"llms": [{"name": "small_llm", "cost": 1.0, "takes_examples": True}]},
    ],
)
def test_a_fingerprint_tells_what_a_posterior_depends_on(changed: dict[str, Any]) -> None:
    other = BanditLearning(build_bandit(Settings(**changed))[1])
    assert other.fingerprint != BanditLearning(bandit()).fingerprint
    assert BanditLearning(bandit()).fingerprint == BanditLearning(bandit()).fingerprint


def test_a_state_of_another_dimension_is_refused() -> None:
    small = BanditLearning(build_bandit(Settings(routing={"projection_dim": 4}))[1])
    with pytest.raises(ValueError, match="posterior: expected"):
        BanditLearning(bandit()).restore(small.state())


def test_a_later_rating_replaces_the_earlier_one() -> None:
    _, twice = learnt(
        (RATING, rating("a", 0.1)), (RATING, rating("b", 0.5, seed=1)), (RATING, rating("a", 0.9))
    )
    _, once = learnt((RATING, rating("a", 0.9)), (RATING, rating("b", 0.5, seed=1)))
    assert same(twice.arms["small_llm"], once.arms["small_llm"])
    assert twice.arms["small_llm"].updates == 2


def test_rating_again_and_again_counts_once() -> None:
    _, often = learnt(*[(RATING, rating("a", 1.0))] * 50)
    _, once = learnt((RATING, rating("a", 1.0)))
    assert same(often.arms["small_llm"], once.arms["small_llm"])


def test_a_preference_moves_the_estimates_apart() -> None:
    before = bandit()
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    learner, after = learnt((PREFERENCE, body))
    assert estimate(after) > estimate(before)
    assert estimate(after, llm="large_llm") < estimate(before, llm="large_llm")
    assert learner.applied == 1


def test_a_preference_that_was_expected_teaches_almost_nothing() -> None:
    known = [(RATING, rating(f"s{i}", 0.95)) for i in range(30)]
    known += [(RATING, rating(f"l{i}", 0.2, "large_llm")) for i in range(30)]
    _, before = learnt(*known)
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, after = learnt(*known, (PREFERENCE, body))
    assert estimate(before) - estimate(before, llm="large_llm") > PREFERENCE_MARGIN
    assert estimate(after) == pytest.approx(estimate(before), abs=0.01)


def test_the_same_preference_counts_once() -> None:
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, often = learnt(*[(PREFERENCE, body)] * 5)
    _, once = learnt((PREFERENCE, body))
    assert identical(often, once)


def test_the_opposite_preference_replaces_the_first() -> None:
    s, large = decision("s"), decision("l", "large_llm")
    first, second = {"better": s, "worse": large}, {"better": large, "worse": s}
    _, one = learnt((PREFERENCE, first))
    _, both = learnt((PREFERENCE, first), (PREFERENCE, second))
    assert estimate(both) < estimate(one)
    # Two answers, each learnt once; every rating is a step for all arms.
    assert [arm.updates for arm in both.arms.values()] == [2, 2]


def test_a_preference_never_overrides_a_rating() -> None:
    rated = [(RATING, rating("s", 0.3)), (RATING, rating("l", 0.9, "large_llm"))]
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, before = learnt(*rated)
    _, after = learnt(*rated, (PREFERENCE, body))
    assert identical(before, after)
    _, half = learnt(rated[0], (PREFERENCE, body))
    _, only = learnt(rated[0])
    # The preference is a step of forgetting for all arms, and nothing else for the rated one.
    assert estimate(half) == pytest.approx(estimate(only), abs=1e-3)
    assert estimate(half, llm="large_llm") < estimate(only, llm="large_llm")


def test_a_later_rating_replaces_what_a_preference_taught() -> None:
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, both = learnt((PREFERENCE, body), (RATING, rating("s", 0.1)))
    _, only = learnt((RATING, rating("s", 0.1)))
    # But for the step of forgetting that the other answer's part in the preference was.
    assert estimate(both) == pytest.approx(estimate(only), abs=1e-3)


def test_keys_that_others_add_to_a_rating_change_nothing() -> None:
    _, more = learnt((RATING, {**rating("a", 0.7), "features": [[1.0]], "dropped": 5}))
    _, plain = learnt((RATING, rating("a", 0.7)))
    assert identical(more, plain)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"score": 0.5},
        {**rating("a", 0.5), "llm": "gone"},
        {**rating("a", 0.5), "score": 1.5},
        {**rating("a", 0.5), "score": float("nan")},
        {**rating("a", 0.5), "score": "good"},
        {**rating("a", 0.5), "score": 10**400},
        {**rating("a", 0.5), "context": [1.0] * (D - 1)},
        {**rating("a", 0.5), "context": [float("nan")] * D},
        {**rating("a", 0.5), "context": [float("inf")] * D},
        {**rating("a", 0.5), "context": "x"},
        {**rating("a", 0.5), "context": None},
        {k: v for k, v in rating("a", 0.5).items() if k != "request_id"},
        {**rating("a", 0.5), "request_id": 5},
    ],
)
def test_a_bad_rating_is_skipped_and_counted_and_learning_goes_on(body: dict[str, Any]) -> None:
    learner, arms = learnt((RATING, body), (RATING, rating("b", 0.7)))
    assert (learner.applied, learner.skipped, learner.position) == (1, 1, "2")
    _, clean = learnt((RATING, rating("b", 0.7)))
    assert same(arms.arms["small_llm"], clean.arms["small_llm"])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"better": decision("a")},
        {"better": decision("a"), "worse": "b"},
        {"better": decision("a"), "worse": decision("b", "gone")},
        {"better": decision("a"), "worse": {**decision("b"), "context": [float("nan")] * D}},
        {"better": decision("a"), "worse": {**decision("b"), "context": [1.0]}},
        {"better": decision("a"), "worse": {**decision("b"), "request_id": None}},
        {"better": decision("a"), "worse": decision("a")},
    ],
)
def test_a_bad_preference_changes_nothing(body: dict[str, Any]) -> None:
    learner, arms = learnt((PREFERENCE, body))
    assert (learner.applied, learner.skipped) == (0, 1)
    assert identical(arms, bandit())
