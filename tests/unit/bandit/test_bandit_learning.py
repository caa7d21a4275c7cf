from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from echolm.bandit.arms import LogisticArm
from echolm.bandit.features import DIMENSION as D
from echolm.bandit.learning import BanditLearning
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.feedback import PREFERENCE, RATING, describe
from echolm.learning.learner import Learner
from echolm.learning.request_statistics import REQUEST_STATISTICS, RequestStatistics, fit
from echolm.primitives import Decision
from echolm.settings import Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.routing import build_bandit
from hypothesis import given, settings
from hypothesis import strategies as st


def model(**sections: Any) -> BanditLearning:
    featurizer, arms = build_bandit(Settings(**sections))
    return BanditLearning(arms, featurizer)


def bandit() -> ThompsonSampling:
    return build_bandit(Settings())[1]


def decision(id: str = "a", llm: str = "small_llm", seed: int = 0) -> dict[str, Any]:
    x = np.random.default_rng(seed).random(D).astype(np.float32)
    return describe(Decision(id, "public", llm, x, 0.5, 0.5, (1,)))


def rating(id: str, score: float, llm: str = "small_llm", seed: int = 0) -> dict[str, Any]:
    return {**decision(id, llm, seed), "score": score}


def estimate(learner: ThompsonSampling, seed: int = 0, llm: str = "small_llm") -> float:
    x = np.random.default_rng(seed).random(D).astype(np.float32)
    return learner.arms[llm].quality(x)


def learnt(*events: tuple[str, Any]) -> tuple[Learner, ThompsonSampling]:
    log, (featurizer, arms) = MemoryEventLog(), build_bandit(Settings())
    for kind, body in events:
        log.append_raw(kind, json.dumps(body).encode())  # by whatever program
    learner = Learner(log, [BanditLearning(arms, featurizer)])
    learner.catch_up()
    return learner, arms


def same(one: LogisticArm, two: LogisticArm) -> bool:
    close = np.allclose(one.weights.covariance, two.weights.covariance)
    return bool(close and np.allclose(one.weights.mean, two.weights.mean))


def test_ratings_reach_the_arm_that_answered_and_no_other() -> None:
    learner, arms = learnt(*[(RATING, rating(str(i), 0.1)) for i in range(20)])
    assert estimate(arms) == pytest.approx(0.1, abs=0.05)
    assert arms.arms["small_llm"].evidence == (0.0, 20.0)
    assert arms.arms["large_llm"].evidence == (0.0, 0.0)
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
            found += [arm.weights.mean.tobytes(), arm.weights.covariance.tobytes()]
            found += [arm.evidence, arm.decay]
        return [*found, bandit.dispersion]

    return content(one) == content(two)


def test_two_learners_reach_identical_posteriors_whatever_their_batches() -> None:
    log = MemoryEventLog()
    for kind, body in history(200, seed=1):
        log.append(kind, body)
    models = [build_bandit(Settings()) for _ in range(2)]
    first, second = (Learner(log, [BanditLearning(a, f)]) for f, a in models)
    one, two = (arms for _, arms in models)
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
    learner = Learner(log, [model()], snapshot_every=before)
    learner.catch_up()
    assert log.load_snapshot(learner.snapshot_name) is not None
    for kind, body in events[before:]:
        log.append(kind, body)
    (f, whole), (g, resumed) = build_bandit(Settings()), build_bandit(Settings())
    replayed = Learner(log, [BanditLearning(whole, f)])
    replayed.catch_up()
    restarted = Learner(log, [BanditLearning(resumed, g)], snapshot_every=1_000)
    assert restarted.catch_up() == after
    assert identical(whole, resumed)
    assert f.statistics.version == g.statistics.version
    assert (restarted.applied, restarted.skipped) == (replayed.applied, replayed.skipped)


@pytest.mark.parametrize(
    "changed",
    [
        {"routing": {"half_life_h": 5.0}},
        {"routing": {"least_ratings": 50.0}},
        {"routing": {"prior_ratings": 4.0}},
        {"llms": [{"name": "small_llm", "cost": 1.0, "takes_examples": True}]},
    ],
)
def test_a_fingerprint_tells_what_a_posterior_depends_on(changed: dict[str, Any]) -> None:
    assert model(**changed).fingerprint != model().fingerprint
    assert model().fingerprint == model().fingerprint


def test_a_state_of_another_dimension_is_refused() -> None:
    state = model().state()
    state["bandit"]["arms"]["small_llm"]["mean"] = np.zeros(D - 1)
    with pytest.raises(ValueError, match="arm: expected"):
        model().restore(state)


def test_a_later_rating_replaces_the_earlier_one() -> None:
    _, twice = learnt(
        (RATING, rating("a", 0.1)), (RATING, rating("b", 0.5, seed=1)), (RATING, rating("a", 0.9))
    )
    _, once = learnt((RATING, rating("a", 0.9)), (RATING, rating("b", 0.5, seed=1)))
    # What a rating says depends a little on what was known before.
    assert estimate(twice) == pytest.approx(estimate(once), abs=0.03)
    assert twice.arms["small_llm"].evidence == (0.0, 2.0)


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


def test_a_preference_that_was_expected_teaches_little() -> None:
    known = [(RATING, rating(f"s{i}", 0.95)) for i in range(30)]
    known += [(RATING, rating(f"l{i}", 0.2, "large_llm")) for i in range(30)]
    _, before = learnt(*known)
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, after = learnt(*known, (PREFERENCE, body))
    assert estimate(after) == pytest.approx(estimate(before), abs=0.01)


def test_a_judges_win_counts_as_much_as_a_callers() -> None:
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, caller = learnt((PREFERENCE, body))
    _, judge = learnt((PREFERENCE, {**body, "share": 1.0, "source": "judge:llm"}))
    assert identical(caller, judge)


def test_ties_make_two_llms_equal_and_the_order_of_the_names_does_not_count() -> None:
    known = [(RATING, rating(f"l{i}", float(i % 10 > 0), "large_llm")) for i in range(60)]
    ties = []
    for i in range(60):
        body = {"better": decision(f"s{i}"), "worse": decision(f"r{i}", "large_llm")}
        if i % 2:
            body = {"better": body["worse"], "worse": body["better"]}
        ties.append((PREFERENCE, {**body, "share": 0.5, "source": "judge:llm"}))
    _, arms = learnt(*known, *ties)
    assert estimate(arms) > 0.85
    assert estimate(arms) == pytest.approx(estimate(arms, llm="large_llm"), abs=0.08)


@pytest.mark.parametrize("lost", [0.1, 0.3, 0.6])
def test_lost_comparisons_show_how_far_llms_are_apart(lost: float) -> None:
    known = [(RATING, rating(f"l{i}", 0.95, "large_llm")) for i in range(60)]
    compared, rng = [], random.Random(1)
    for i in range(300):
        share = 1.0 if rng.random() < lost else 0.5
        body = {"better": decision(f"r{i}", "large_llm"), "worse": decision(f"s{i}")}
        compared.append((PREFERENCE, {**body, "share": share, "source": "judge:llm"}))
    _, arms = learnt(*known, *compared)
    gap = estimate(arms, llm="large_llm") - estimate(arms)
    assert gap == pytest.approx(lost, abs=0.07)


def test_several_comparisons_of_one_answer_all_count() -> None:
    """An answer that is compared with two others has lost twice."""
    worse = decision("s")
    bodies = [{"better": decision(f"l{i}", "large_llm"), "worse": worse} for i in range(2)]
    events = [(PREFERENCE, {**body, "source": "judge:llm"}) for body in bodies]
    _, one = learnt(events[0])
    _, both = learnt(*events)
    assert estimate(both) < estimate(one) - 0.02
    _, rated = learnt(*events, (RATING, rating("s", 1.0)))
    _, only = learnt((RATING, rating("s", 1.0)))
    assert estimate(rated) == pytest.approx(estimate(only), abs=0.02)


def test_a_judge_gives_way_to_a_caller_before_and_after() -> None:
    judged = {
        "better": decision("l", "large_llm"),
        "worse": decision("s"),
        "source": "judge:llm",
    }
    _, before = learnt((RATING, rating("s", 0.9)), (PREFERENCE, judged))
    _, after = learnt((PREFERENCE, judged), (RATING, rating("s", 0.9)))
    _, only = learnt((RATING, rating("s", 0.9)))
    assert estimate(before) == pytest.approx(estimate(only))
    assert estimate(after) == pytest.approx(estimate(only), abs=0.01)


def spread(n: int, seed: int) -> RequestStatistics:
    vectors = np.random.default_rng(seed).normal(size=(n, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return fit(vectors, np.linspace(0.5, 0.8, 50, dtype=np.float32), seed)


def test_new_request_statistics_are_adopted_in_their_order_and_carried_by_snapshots() -> None:
    log = MemoryEventLog()
    events = [(REQUEST_STATISTICS, spread(100, 1).body()), *history(30, 1)]
    events += [(REQUEST_STATISTICS, spread(300, 2).body()), (REQUEST_STATISTICS, events[0][1])]
    events += [(RATING, {**rating("v1", 0.2), "statistics": 1})]
    for kind, body in events:
        log.append(kind, body)
    learned = model()
    learner = Learner(log, [learned], snapshot_every=1)
    learner.catch_up()
    resumed, again = build_bandit(Settings())
    Learner(log, [BanditLearning(again, resumed)], snapshot_every=100).catch_up()
    assert resumed.statistics.version == 2
    assert [s.version for s in resumed.versions] == [1, 2]
    assert learner.ignored == 1  # the older ones came late


def test_damaged_request_statistics_change_nothing() -> None:
    body = spread(100, 1).body()
    for damage in ({"scale": 0.0}, {"mean": [1.0]}, {"nearest": [1.0]}, {"scale": float("nan")}):
        learner, arms = learnt((REQUEST_STATISTICS, {**body, **damage}))
        assert (learner.applied, learner.skipped) == (0, 1)
        assert identical(arms, bandit())


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


def test_a_preference_never_overrides_a_rating() -> None:
    rated = [(RATING, rating("s", 0.3)), (RATING, rating("l", 0.9, "large_llm"))]
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, before = learnt(*rated)
    _, after = learnt(*rated, (PREFERENCE, body))
    assert identical(before, after)
    _, half = learnt(rated[0], (PREFERENCE, body))
    _, only = learnt(rated[0])
    assert estimate(half) == estimate(only)
    assert estimate(half, llm="large_llm") < estimate(only, llm="large_llm")


def test_a_later_rating_replaces_what_a_preference_taught() -> None:
    body = {"better": decision("s"), "worse": decision("l", "large_llm")}
    _, both = learnt((PREFERENCE, body), (RATING, rating("s", 0.1)))
    _, only = learnt((RATING, rating("s", 0.1)))
    assert estimate(both) == pytest.approx(estimate(only), abs=0.01)


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
        {"better": decision("a"), "worse": decision("b"), "share": 1.5},
        {"better": decision("a"), "worse": decision("b"), "share": float("nan")},
    ],
)
def test_a_bad_preference_changes_nothing(body: dict[str, Any]) -> None:
    learner, arms = learnt((PREFERENCE, body))
    assert (learner.applied, learner.skipped) == (0, 1)
    assert identical(arms, bandit())
