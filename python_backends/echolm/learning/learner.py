"""Applies the log's ratings to the bandit, in the log's order."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from echolm.learning.event_log import Event, EventLog
from echolm.learning.tokens import Decision
from echolm.routing.bandit import ThompsonSampling

logger = logging.getLogger("echolm")

RATING = "rating"
PREFERENCE = "preference"

PREFERENCE_MARGIN = 0.2
"""How much better than the other an answer must be, in quality, that a caller prefers it."""

_REMEMBERED = 100_000  # ratings that can still be replaced by a later one


def describe(decision: Decision) -> dict[str, Any]:
    """A decision as JSON values, for the log."""
    return {
        "request_id": decision.request_id,
        "tenant": decision.tenant,
        "llm": decision.llm,
        "context": [float(v) for v in decision.context],
        "propensity": decision.propensity,
        "example_ids": list(decision.example_ids),
    }


@dataclass(frozen=True)
class _Learned:
    score: float
    learned_at: int


class Learner:
    """Keeps a bandit up to date with the event log.

    Every process applies the same events in the same order, so all reach the same posterior.
    An event that cannot be applied is skipped and counted, never fatal.
    """

    def __init__(self, log: EventLog, bandit: ThompsonSampling) -> None:
        self._log = log
        self._bandit = bandit
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        self.position = 0
        self.applied = 0
        self.skipped = 0

    def catch_up(self, batch: int = 1_000) -> int:
        """Apply all new events and return how many there were."""
        count = 0
        while events := self._log.read(self.position, batch):
            for event in events:
                self._apply(event)
                self.position = event.sequence
            count += len(events)
        return count

    def _apply(self, event: Event) -> None:
        try:
            if event.kind == RATING:
                self._rate(event.body, float(event.body["score"]))
            elif event.kind == PREFERENCE:
                self._prefer(event.body["better"], event.body["worse"])
            else:
                return
            self.applied += 1
        except Exception as error:  # one bad event must not end all learning
            self.skipped += 1
            logger.warning("learning log: event %d skipped: %r", event.sequence, error)

    def _rate(self, decision: Mapping[str, Any], score: float) -> None:
        arm = self._bandit.arms[decision["llm"]]
        x = np.asarray(decision["context"], dtype=np.float32)
        if x.shape != arm.mean.shape:
            raise ValueError(f"context of {x.shape[0]} elements, expected {arm.mean.shape[0]}")
        if not np.isfinite(x).all():
            raise ValueError("context is not finite")
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score {score} outside [0, 1]")
        request_id = decision["request_id"]
        earlier = self._learned.pop(request_id, None)
        if earlier is None:
            arm.learn(x, score)
            self._learned[request_id] = _Learned(score, arm.updates)
        else:
            # A later rating of the same answer replaces the earlier one.
            arm.correct(x, earlier.score, score, earlier.learned_at)
            self._learned[request_id] = _Learned(score, earlier.learned_at)
        while len(self._learned) > _REMEMBERED:
            self._learned.popitem(last=False)

    def _prefer(self, better: Mapping[str, Any], worse: Mapping[str, Any]) -> None:
        """A preference moves both estimates apart, half of what the margin lacks each."""
        predicted = []
        for decision in (better, worse):
            x = np.asarray(decision["context"], dtype=np.float32)
            if not np.isfinite(x).all():
                raise ValueError("context is not finite")
            predicted.append(self._bandit.arms[decision["llm"]].predict(x)[0])
        lacking = max(0.0, PREFERENCE_MARGIN - (predicted[0] - predicted[1]))
        self._rate(better, min(1.0, max(0.0, predicted[0] + lacking / 2)))
        self._rate(worse, min(1.0, max(0.0, predicted[1] - lacking / 2)))
