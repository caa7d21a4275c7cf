from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from echolm.learning.bandit_learning import PREFERENCE_MARGIN, BanditLearning
from echolm.learning.fake_log import MemoryEventLog
from echolm.learning.feedback import PREFERENCE, RATING, describe
from echolm.learning.learner import Learner
from echolm.learning.tokens import Decision
from echolm.routing.bandit import BayesianLinearArm, ThompsonSampling
from echolm.routing.service import build_bandit
from echolm.settings import Settings

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
    return bool(np.allclose(one.posterior.A, two.posterior.A) and np.allclose(one.mean, two.mean))


def test_ratings_reach_the_arm_that_answered_and_no_other() -> None:
    learner, arms = learnt(*[(RATING, rating(str(i), 0.1)) for i in range(20)])
    assert estimate(arms) == pytest.approx(0.1, abs=0.05)
    assert estimate(arms, llm="large_llm") == pytest.approx(estimate(bandit(), llm="large_llm"))
    assert (learner.applied, learner.skipped, learner.position) == (20, 0, "20")


def test_catching_up_again_applies_only_what_is_new() -> None:
    log, arms = MemoryEventLog(), bandit()
    learner = Learner(log, [BanditLearning(arms)])
    log.append(RATING, rating("a", 0.9))
    assert learner.catch_up() == 1
    assert learner.catch_up() == 0
    log.append(RATING, rating("b", 0.9))
    assert learner.catch_up(batch=1) == 1
    assert arms.arms["small_llm"].updates == 2


def test_two_learners_reach_identical_posteriors_whatever_their_batches() -> None:
    log = MemoryEventLog()
    shuffle = random.Random(1)
    for i in range(200):
        kind = shuffle.random()
        if kind < 0.8:
            llm = shuffle.choice(["small_llm", "large_llm"])
            # Ids repeat: some ratings replace earlier ones.
            n = shuffle.randrange(120)
            log.append(RATING, rating(f"{llm}{n}", shuffle.random(), llm, n))
        elif kind < 0.9:
            body = {"better": decision(f"x{i}", seed=i), "worse": decision(f"y{i}", "large_llm", i)}
            log.append(PREFERENCE, body)
        else:
            log.append(RATING, {"damaged": i})
    one, two = bandit(), bandit()
    first, second = (Learner(log, [BanditLearning(arms)]) for arms in (one, two))
    first.catch_up(batch=1_000)
    second.catch_up(batch=7)
    for name in one.arms:
        assert (one.arms[name].posterior.A == two.arms[name].posterior.A).all()
        assert (one.arms[name].posterior.b == two.arms[name].posterior.b).all()
    assert (first.applied, first.skipped) == (second.applied, second.skipped)


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
    ],
)
def test_a_bad_preference_changes_nothing(body: dict[str, Any]) -> None:
    learner, arms = learnt((PREFERENCE, body))
    assert (learner.applied, learner.skipped) == (0, 1)
    assert all(same(arms.arms[n], bandit().arms[n]) for n in arms.arms)


def test_events_of_other_kinds_are_for_others() -> None:
    learner, _ = learnt(("example_added", {"id": 1}))
    assert (learner.applied, learner.skipped, learner.position) == (0, 0, "1")


def revised(**revisions: str) -> ThompsonSampling:
    """The bandit after LLMs were replaced."""
    llms = tuple(
        llm.model_copy(update={"revision": revisions.get(llm.name, llm.revision)})
        for llm in Settings().llms
    )
    return build_bandit(Settings(llms=llms))[1]


def of_revision(revision: str, body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "revision": revision}


def test_ratings_of_another_revision_are_left_aside_without_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log, arms = MemoryEventLog(), revised(small_llm="2")
    old = {k: v for k, v in rating("0", 0.0).items() if k != "revision"}  # before revisions
    for body in (old, rating("1", 0.0), of_revision("1", rating("2", 0.0))):
        log.append(RATING, body)
    body = {"better": decision("x", "large_llm"), "worse": of_revision("1", decision("y"))}
    log.append(PREFERENCE, body)
    learner = Learner(log, [BanditLearning(arms)])
    learner.catch_up()
    assert (learner.applied, learner.skipped, learner.ignored) == (0, 0, 4)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert all(same(arms.arms[n], revised(small_llm="2").arms[n]) for n in arms.arms)


def test_a_replaced_llm_is_learnt_anew_and_the_others_stay_as_they_are() -> None:
    log = MemoryEventLog()
    for i in range(30):
        log.append(RATING, rating(f"s{i}", 0.95))
        log.append(RATING, rating(f"l{i}", 0.4, "large_llm"))
    arms = revised(small_llm="2")
    learner = Learner(log, [BanditLearning(arms)])
    learner.catch_up()
    assert learner.applied == 30
    assert estimate(arms, llm="large_llm") == pytest.approx(0.4, abs=0.1)
    for i in range(10):
        log.append(RATING, of_revision("2", rating(f"n{i}", 0.1)))
    learner.catch_up()
    # Ten ratings are enough: the prior of a replaced LLM is wide.
    assert estimate(arms) == pytest.approx(0.1, abs=0.1)


def test_a_snapshot_of_another_revision_is_not_used() -> None:
    log = MemoryEventLog()
    for i in range(20):
        log.append(RATING, rating(f"s{i}", 0.1))
    Learner(log, [BanditLearning(bandit())], snapshot_every=10).catch_up()
    arms = revised(small_llm="2")
    learner = Learner(log, [BanditLearning(arms)], snapshot_every=10)
    learner.catch_up()
    assert learner.ignored == 20
    assert same(arms.arms["small_llm"], revised(small_llm="2").arms["small_llm"])
