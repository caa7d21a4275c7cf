"""The router's bandit as a model that learns from the log."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.arms import BayesianLinearArm
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, is_judged
from echolm.learning.learner import OutdatedError
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.record import remember

logger = logging.getLogger("echolm")

PREFERENCE_MARGIN = 0.2
"""How much better than the other an answer must be, in quality, that a caller prefers it."""

_JUDGED = "(judged)"  # stands in place of a preference; no pair of request ids has this form
_REMEMBERED = 100_000  # most ratings that can still be replaced by a later one
_VERSION = 2  # raised whenever events do something else, so that old snapshots are not used


class _Answer(NamedTuple):
    """A rated answer; x is the context, FP32 [d]."""

    request_id: str
    llm: str
    arm: BayesianLinearArm
    x: NDArray[np.float32]


class _Learned(NamedTuple):
    """What an answer has taught.

    Attributes:
        learned_at: the arm's ``updates`` after it was learnt.
        preference: empty for a caller's rating, ``_JUDGED`` for a judge's; otherwise the ids of
            the two answers that were compared.
    """

    score: float
    learned_at: int
    preference: str


class BanditLearning:
    """Teaches a bandit ratings and preferences (:mod:`echolm.learning.feedback`).

    Feedback on another revision of an LLM is skipped: an LLM that was replaced is learnt anew,
    from its prior.
    """

    name = "bandit"
    kinds = frozenset({RATING, PREFERENCE})

    def __init__(self, bandit: ThompsonSampling) -> None:
        self._bandit = bandit
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        self._other_revisions: set[tuple[str, str]] = set()
        arms = {name: arm.configuration for name, arm in bandit.arms.items()}
        limits = {"margin": PREFERENCE_MARGIN, "remembered": _REMEMBERED}
        self.fingerprint = fingerprint({"version": _VERSION, "arms": arms, **limits})

    def apply(self, event: Event) -> None:
        if event.kind == RATING:
            judged = is_judged(event.body)
            self._rate(self._answer(event.body), float(event.body["score"]), judged)
        else:
            better, worse = (self._answer(event.body[key]) for key in ("better", "worse"))
            self._prefer(better, worse)

    def state(self) -> dict[str, Any]:
        arms = {name: arm.state() for name, arm in self._bandit.arms.items()}
        entries = self._learned.values()
        learned = {
            "request_ids": list(self._learned),
            "scores": np.array([entry.score for entry in entries], dtype=np.float64),
            "learned_at": np.array([entry.learned_at for entry in entries], dtype=np.int64),
            "preferences": [entry.preference for entry in entries],
        }
        return {"arms": arms, "learned": learned}

    def restore(self, state: dict[str, Any]) -> None:
        for name, arm in self._bandit.arms.items():
            arm.restore(state["arms"][name])
        learned = state["learned"]
        columns = (learned["scores"].tolist(), learned["learned_at"].tolist())
        rows = zip(learned["request_ids"], *columns, learned["preferences"], strict=True)
        self._learned = OrderedDict((request_id, _Learned(*row)) for request_id, *row in rows)

    def _answer(self, decision: Mapping[str, Any]) -> _Answer:
        request_id = decision["request_id"]
        if not isinstance(request_id, str):
            raise ValueError(f"request_id: expected text, got {request_id!r}")
        llm, revision = decision["llm"], str(decision.get("revision", ""))
        arm = self._bandit.arms[llm]
        if revision != arm.revision:
            if (llm, revision) not in self._other_revisions:  # logged once, not for each rating
                self._other_revisions.add((llm, revision))
                logger.info("%s: ratings skipped as of another revision, %r", llm, revision)
            raise OutdatedError(f"{llm}: of revision {revision!r}, now {arm.revision!r}")
        x = np.asarray(decision["context"], dtype=np.float32)
        if x.shape != arm.mean.shape:
            raise ValueError(f"context: expected shape {arm.mean.shape}, got {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("context: expected finite numbers, got NaN or infinity")
        return _Answer(request_id, llm, arm, x)

    def _rate(self, answer: _Answer, score: float, judged: bool) -> None:
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score: expected a number in [0, 1], got {score}")
        earlier = self._learned.get(answer.request_id)
        if judged and earlier is not None and earlier.preference != _JUDGED:
            return  # the caller has said what the answer is worth to them
        self._learn(answer, score, _JUDGED if judged else "")

    def _prefer(self, better: _Answer, worse: _Answer) -> None:
        """Move both estimates apart, each by half of what their difference lacks to the margin."""
        if better.request_id == worse.request_id:
            raise ValueError("preference: expected two answers, got the same one twice")
        preference = f"{better.request_id}>{worse.request_id}"
        high, low = (answer.arm.predict(answer.x)[0] for answer in (better, worse))
        half = max(0.0, PREFERENCE_MARGIN - (high - low)) / 2
        for answer, score in ((better, high + half), (worse, low - half)):
            earlier = self._learned.get(answer.request_id)
            # A rating says more than a preference, and the same preference counts once.
            if earlier is None or earlier.preference not in ("", preference):
                self._learn(answer, min(1.0, max(0.0, score)), preference)

    def _learn(self, answer: _Answer, score: float, preference: str) -> None:
        earlier = self._learned.get(answer.request_id)
        if earlier is None:
            self._bandit.learn(answer.llm, answer.x, score)
            learned_at = answer.arm.updates
        else:
            # What is said later of the same answer replaces what was said before.
            learned_at = earlier.learned_at
            answer.arm.correct(answer.x, earlier.score, score, learned_at)
        learned = _Learned(score, learned_at, preference)
        remember(self._learned, answer.request_id, learned, _REMEMBERED)
