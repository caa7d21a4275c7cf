from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.learning.event_log import START
from echolm.learning.feedback import (
    PREFERENCE,
    RATING,
    Feedback,
    FeedbackService,
    Rated,
    describe,
)
from echolm.learning.tokens import FeedbackTokens
from echolm.primitives import Decision
from echolm.testing.event_log import MemoryEventLog

TTL_S = 3_600
TOKENS = FeedbackTokens("key", TTL_S)


def decision(request_id: str = "a", tenant: str = "acme") -> Decision:
    x = np.array([1, 0.5], dtype=np.float32)
    return Decision(request_id, tenant, "small_llm", x, 0.75, 0.5, (7,))


def token(request_id: str = "a", tenant: str = "acme") -> str:
    return TOKENS.dump(decision(request_id, tenant))


def logged(log: MemoryEventLog) -> list[tuple[str, Any]]:
    return [(e.kind, e.body) for e in log.read(START, 100)]


def accepted(*rows: Feedback) -> list[tuple[str, Any]]:
    log = MemoryEventLog()
    FeedbackService(TOKENS, log).accept(rows)
    return logged(log)


def refusal(*rows: Feedback) -> str:
    log = MemoryEventLog()
    with pytest.raises(InvalidRequestError) as caught:
        FeedbackService(TOKENS, log).accept(rows)
    assert logged(log) == []
    return str(caught.value)


def test_a_rating_is_logged_with_all_that_its_token_carries() -> None:
    assert accepted(Feedback(token(), score=0.25)) == [
        (RATING, {**describe(decision()), "score": 0.25})
    ]


def test_accepted_ratings_come_back_with_what_the_router_had_expected() -> None:
    rows = [Feedback(token("a"), score=0.25), Feedback(token("b"), preferred_over=token("c"))]
    assert FeedbackService(TOKENS, MemoryEventLog()).accept(rows) == [Rated("small_llm", 0.25, 0.5)]


def test_a_preference_is_logged_with_both_answers() -> None:
    assert accepted(Feedback(token("a"), preferred_over=token("b"))) == [
        (PREFERENCE, {"better": describe(decision("a")), "worse": describe(decision("b"))})
    ]


def test_a_duplicate_is_accepted_and_left_to_the_learner_to_count_once() -> None:
    row = Feedback(token(), score=1.0)
    assert len(accepted(row, row)) == 2


def test_late_feedback_counts_until_the_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    old, other = token("a"), token("b")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + TTL_S - 5)
    assert len(accepted(Feedback(old, score=1.0), Feedback(old, preferred_over=other))) == 2
    monkeypatch.setattr(time, "time", lambda: now + TTL_S + 5)
    fresh = token("c")
    expected = f"expected a token at most {TTL_S} s old, got an expired one"
    assert refusal(Feedback(old, score=1.0)) == f"feedback_token: {expected}"
    assert refusal(Feedback(fresh, preferred_over=old)) == f"preferred_over: {expected}"


def test_forged_tokens_are_refused() -> None:
    expected = "expected a token that this service signed"
    foreign = FeedbackTokens("another key", TTL_S).dump(decision())
    good = token("b")
    changed = good[:10] + ("A" if good[10] != "A" else "B") + good[11:]
    for bad in ("", "nonsense", foreign, changed):
        assert refusal(Feedback(bad, score=1.0)).startswith(f"feedback_token: {expected}")
        assert refusal(Feedback(token(), preferred_over=bad)).startswith(
            f"preferred_over: {expected}"
        )


def test_the_own_tenants_answers_can_be_rated() -> None:
    rows = (
        Feedback(token(), score=1.0, tenant="acme"),
        Feedback(token(), preferred_over=token("b"), tenant="acme"),
    )
    assert len(accepted(*rows)) == 2


@pytest.mark.parametrize("tenant", ["other", "", "ACME", "public"])
def test_another_tenants_answers_cannot_be_rated_and_nothing_is_told_of_them(tenant: str) -> None:
    for row in (
        Feedback(token(), score=1.0, tenant=tenant),
        Feedback(token(), preferred_over=token("b"), tenant=tenant),
        Feedback(token("b", tenant or "x"), preferred_over=token(), tenant=tenant),
    ):
        message = refusal(row)
        assert message.endswith("expected a token of the tenant given, got another tenant's")
        assert "acme" not in message


def test_preferences_across_tenants_are_refused_whoever_asks() -> None:
    across = {"token": token("a", "acme"), "preferred_over": token("b", "other")}
    assert "a token of the same tenant, got another tenant's" in refusal(Feedback(**across))
    for tenant in ("acme", "other"):
        assert "of the tenant given" in refusal(Feedback(**across, tenant=tenant))


def test_an_answer_cannot_be_preferred_over_itself() -> None:
    assert "the token of another answer" in refusal(Feedback(token(), preferred_over=token()))


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf")])
def test_scores_outside_their_range_are_refused(score: float) -> None:
    assert refusal(Feedback(token(), score=score)).startswith("score: expected a number in [0, 1]")


def test_a_rating_or_a_preference_is_wanted_not_both_or_neither() -> None:
    expected = "either score or preferred_over, got "
    assert refusal(Feedback(token())).endswith(expected + "neither")
    assert refusal(Feedback(token(), 1.0, token("b"))).endswith(expected + "both")


def test_one_wrong_row_and_none_is_logged() -> None:
    assert "signed" in refusal(Feedback(token(), score=1.0), Feedback("forged", score=1.0))


def test_what_cannot_be_logged_is_not_acknowledged() -> None:
    log = MemoryEventLog()
    log.available = False
    with pytest.raises(UnavailableError):
        FeedbackService(TOKENS, log).accept([Feedback(token(), score=1.0)])
