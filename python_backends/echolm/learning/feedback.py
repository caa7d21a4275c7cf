"""Feedback: how callers rate answers, and the events that it becomes.

- A *rating* is a score of one answer. It counts once per answer: one that comes again changes
  nothing, a different one replaces the earlier.
- A *preference* names the better of two answers of one tenant. It counts once, too, and gives way
  to a rating of either answer, before or after, which holds more information.
- A *judge's* rating of an answer (``source`` names the judge) gives way to the caller's feedback
  on it, before or after.
- *Late* feedback counts as long as its token is valid (``feedback.token_ttl_s``), whatever was
  learnt since. After that it is refused, as are tokens that were forged or changed.
- A token holds the tenant of its answer. A caller that names a tenant can rate only that tenant's
  answers; a gateway that knows its callers should always name it.
- Feedback is acknowledged once it is in the log for good. It may be sent again when that fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echolm.errors import InvalidRequestError
from echolm.learning.event_log import Event, EventLog
from echolm.learning.tokens import FeedbackTokens
from echolm.primitives import Decision

RATING = "rating"
"""Kind of an event whose body is :func:`describe`'s, with ``score`` in [0, 1].

A judge's rating has ``source`` and ``judging``, too, see :mod:`echolm.judges.service`.
"""

JUDGE_SOURCE = "judge:"
"""Begins the ``source`` of a rating that no caller gave; the judge's kind follows."""

PREFERENCE = "preference"
"""Kind of an event whose body holds two descriptions, ``better`` and ``worse``.

It may have a ``share``, what the better one won: 1 without it, and 0.5 is a tie. A judge's has a
``source`` as its ratings have.
"""

JUDGED, PREFERRED, RATED = range(3)
"""Ranks of feedback on an answer: what ranks higher takes the place of what ranks lower."""


@dataclass(frozen=True)
class Feedback:
    """A caller's feedback on one answer.

    Attributes:
        token: the feedback token of the answer.
        score: from 0 (useless) to 1 (perfect); None for a preference.
        preferred_over: the token of the answer that is worse; None for a rating.
        tenant: whose answer it must be; None if the caller does not name a tenant.
    """

    token: str
    score: float | None = None
    preferred_over: str | None = None
    tenant: str | None = None


@dataclass(frozen=True)
class Rated:
    """A rating that was accepted; ``predicted`` is the quality that the router had expected."""

    llm: str
    score: float
    predicted: float


@dataclass(frozen=True)
class FeedbackService:
    """Takes feedback into the learning log."""

    tokens: FeedbackTokens
    log: EventLog

    def accept(self, rows: Sequence[Feedback]) -> list[Rated]:
        """Log all rows for good; gives the ratings among them.

        Raises:
            InvalidRequestError: a row is wrong; none of them is logged.
            UnavailableError: the log failed; some rows may be in it.
        """
        events = [self._event(row) for row in rows]
        for kind, body in events:
            self.log.append(kind, body)
        ratings = [body for kind, body in events if kind == RATING]
        return [Rated(r["llm"], r["score"], r["quality"]) for r in ratings]

    def _event(self, row: Feedback) -> tuple[str, dict[str, Any]]:
        if (row.score is None) == (row.preferred_over is None):
            got = "neither" if row.score is None else "both"
            expected = "feedback_token with either score or preferred_over"
            raise InvalidRequestError.of("feedback", expected, got)
        decision = self._decision(row.token, "feedback_token", row.tenant)
        if row.score is not None:
            if not 0.0 <= row.score <= 1.0:
                raise InvalidRequestError.of("score", "a number in [0, 1]", row.score)
            return RATING, {**describe(decision), "score": row.score}
        assert row.preferred_over is not None
        other = self._decision(row.preferred_over, "preferred_over", row.tenant)
        if other.request_id == decision.request_id:
            expected, got = "the token of another answer", "one of the same answer"
            raise InvalidRequestError.of("preferred_over", expected, got)
        if other.tenant != decision.tenant:
            expected, got = "a token of the same tenant", "another tenant's"
            raise InvalidRequestError.of("preferred_over", expected, got)
        return PREFERENCE, {"better": describe(decision), "worse": describe(other)}

    def _decision(self, token: str, name: str, tenant: str | None) -> Decision:
        decision = self.tokens.load(token, name)
        if tenant is not None and decision.tenant != tenant:
            # Whose token it is instead is not for this caller to know.
            raise InvalidRequestError.of(name, "a token of the tenant given", "another tenant's")
        return decision


def is_judged(rating: Mapping[str, Any]) -> bool:
    """Whether a judge gave a rating, and not a caller."""
    return str(rating.get("source", "")).startswith(JUDGE_SOURCE)


@dataclass(frozen=True)
class Rating:
    """A rating as a model learns it.

    Attributes:
        answer: description of the rated answer, see :func:`describe`.
        rank: ``JUDGED`` or ``RATED``.
        asked: whether the answer was made for a judgement, and so by an LLM that was not routed to.
    """

    request_id: str
    answer: Mapping[str, Any]
    score: float
    rank: int
    asked: bool


@dataclass(frozen=True)
class Comparison:
    """A comparison of two answers as a model learns it.

    Attributes:
        request_ids: of the two answers, ascending, so that the same two always come alike.
        answers: their descriptions.
        share: what the first one won, in [0, 1].
        rank: ``JUDGED`` or ``PREFERRED``.
        asked: of each answer, see :class:`Rating`.
    """

    request_ids: tuple[str, str]
    answers: tuple[Mapping[str, Any], Mapping[str, Any]]
    share: float
    rank: int
    asked: tuple[bool, bool]

    @property
    def key(self) -> str:
        """Names the two answers."""
        return ">".join(self.request_ids)


def read_feedback(event: Event) -> Rating | Comparison:
    """What a ``RATING`` or ``PREFERENCE`` says, for all models that learn from both.

    Raises:
        KeyError, TypeError, ValueError: the event is damaged.
    """
    body, judged = event.body, is_judged(event.body)
    asked = (body.get("judging") or {}).get("asked", ())
    if event.kind == RATING:
        score = _share_of(body["score"], "score")
        return Rating(_request_id(body), body, score, JUDGED if judged else RATED, bool(asked))
    asked = ("better" in asked, "worse" in asked)
    answers, share = (body["better"], body["worse"]), _share_of(body.get("share", 1.0), "share")
    ids = (_request_id(answers[0]), _request_id(answers[1]))
    if ids[0] == ids[1]:
        raise ValueError("preference: expected two answers, got the same one twice")
    if ids[0] > ids[1]:
        ids, answers, share, asked = ids[::-1], answers[::-1], 1.0 - share, asked[::-1]
    return Comparison(ids, answers, share, JUDGED if judged else PREFERRED, asked)


def _request_id(answer: Mapping[str, Any]) -> str:
    request_id = answer["request_id"]
    if not isinstance(request_id, str):
        raise ValueError(f"request_id: expected text, got {request_id!r}")
    return request_id


def _share_of(value: Any, name: str) -> float:
    number = float(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1], got {number}")
    return number


def describe(decision: Decision) -> dict[str, Any]:
    """A decision as JSON values, for the log."""
    context = [float(v) for v in decision.context]
    return {**vars(decision), "context": context, "example_ids": list(decision.example_ids)}
