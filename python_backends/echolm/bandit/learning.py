"""The router's bandit as a model that learns from the log."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.arms import LogisticArm
from echolm.bandit.features import Featurizer
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING, Comparison, Rating, read_feedback
from echolm.learning.learner import OutdatedError
from echolm.learning.logistic import Site
from echolm.learning.request_statistics import REQUEST_STATISTICS, RequestStatistics
from echolm.learning.snapshot import fingerprint
from echolm.primitives import OTHER_FEATURES, STORED
from echolm.retrieval.record import remember

logger = logging.getLogger("echolm")

_REMEMBERED = 100_000  # most answers of which what was learnt can still be replaced
_LARGEST = 65_504.0  # of a context: FP16's, as which it travels
_VERSION = 3  # raised whenever events do something else, so that old snapshots are not used


class _Answer(NamedTuple):
    """An answer that there is feedback on; x is the context, FP32 [d]."""

    request_id: str
    llm: str
    arm: LogisticArm
    x: NDArray[np.float32]


class _Learned(NamedTuple):
    """What one piece of feedback has taught.

    Attributes:
        value: the score, or the share that the first of two answers won.
        rank: of its kind; see :mod:`echolm.learning.feedback`.
        key: whose feedback it is: empty for a rating, otherwise the ids of the two answers that
            were compared.
        decay: the arm's when it was learnt.
    """

    value: float
    rank: int
    key: str
    site: Site
    decay: float


class BanditLearning:
    """Teaches a bandit ratings and preferences (:mod:`echolm.learning.feedback`).

    Feedback on another revision of an LLM is skipped: an LLM that was replaced is learnt anew,
    from its prior. New request statistics change the features; what was learnt is carried over.
    """

    name = "bandit"
    kinds = frozenset({RATING, PREFERENCE, REQUEST_STATISTICS})

    def __init__(self, bandit: ThompsonSampling, featurizer: Featurizer) -> None:
        self._bandit, self._featurizer = bandit, featurizer
        self._learned: OrderedDict[str, tuple[_Learned, ...]] = OrderedDict()
        self._other_revisions: set[tuple[str, str]] = set()
        arms = {name: arm.configuration for name, arm in bandit.arms.items()}
        self.fingerprint = fingerprint(
            {"version": _VERSION, "arms": arms, "remembered": _REMEMBERED}
        )

    def apply(self, event: Event) -> None:
        if event.kind == REQUEST_STATISTICS:
            self._adopt(RequestStatistics.read(event.body))
            return
        feedback = read_feedback(event)
        if isinstance(feedback, Rating):
            answer = self._answer(feedback.answer)
            self._bandit.forget(event.at_ms)
            self._rate(answer, feedback.score, feedback.rank)
        else:
            first, second = map(self._answer, feedback.answers)
            self._bandit.forget(event.at_ms)
            self._compare(first, second, feedback)

    def state(self) -> dict[str, Any]:
        entries = [(id, entry) for id, known in self._learned.items() for entry in known]
        numbers = [(e.value, e.rank, *e.site, e.decay) for _, e in entries]
        return {
            "bandit": self._bandit.state(),
            "statistics": [s.body() for s in self._featurizer.versions if s.version],
            "request_ids": [id for id, _ in entries],
            "keys": [entry.key for _, entry in entries],
            "numbers": np.array(numbers, dtype=np.float64).reshape(-1, 5),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._featurizer.reset([RequestStatistics.read(body) for body in state["statistics"]])
        self._bandit.restore(state["bandit"])
        learned: OrderedDict[str, tuple[_Learned, ...]] = OrderedDict()
        rows = zip(state["request_ids"], state["keys"], state["numbers"].tolist(), strict=True)
        for request_id, key, (value, rank, precision, shift, decay) in rows:
            entry = _Learned(value, int(rank), key, Site(precision, shift), decay)
            learned[request_id] = (*learned.get(request_id, ()), entry)
        self._learned = learned

    def _adopt(self, statistics: RequestStatistics) -> None:
        if statistics.version <= self._featurizer.statistics.version:
            raise OutdatedError(f"request statistics: version {statistics.version}")
        old_from_new = self._featurizer.adopt(statistics)
        for arm in self._bandit.arms.values():
            arm.transform(old_from_new)

    def _answer(self, decision: Mapping[str, Any]) -> _Answer:
        llm, revision = decision["llm"], str(decision.get("revision", ""))
        if llm == STORED:
            raise OutdatedError("an answer from the store, of no LLM of the bandit's")
        arm = self._bandit.arms[llm]
        if revision != arm.revision:
            if (llm, revision) not in self._other_revisions:  # logged once, not for each rating
                self._other_revisions.add((llm, revision))
                logger.info("%s: ratings skipped as of another revision, %r", llm, revision)
            raise OutdatedError(f"{llm}: of revision {revision!r}, now {arm.revision!r}")
        x = np.asarray(decision["context"], dtype=np.float32)
        if x.shape != arm.prior.mean.shape:
            raise ValueError(f"context: expected shape {arm.prior.mean.shape}, got {x.shape}")
        if not (np.abs(x) <= _LARGEST).all():  # False for NaN
            raise ValueError(f"context: expected numbers up to {_LARGEST:g}, as FP16 has them")
        version = int(decision.get("statistics", OTHER_FEATURES))
        if version == OTHER_FEATURES:
            raise OutdatedError(f"{llm}: its context is of an earlier version of EchoLM")
        x = self._featurizer.convert(x, version)
        return _Answer(decision["request_id"], llm, arm, x)

    def _rate(self, answer: _Answer, score: float, rank: int) -> None:
        if self._counts(answer, score, rank, ""):
            site = self._bandit.learn(answer.llm, answer.x, score)
            self._remember(answer, score, rank, "", site)

    def _compare(self, first: _Answer, second: _Answer, comparison: Comparison) -> None:
        share, rank, key = comparison.share, comparison.rank, comparison.key
        counts = [self._counts(answer, share, rank, key) for answer in (first, second)]
        sites = self._bandit.compare(first.llm, first.x, second.llm, second.x, share)
        for answer, site, taken in zip((first, second), sites, counts, strict=True):
            if taken:
                answer.arm.learn(answer.x, site)
                self._remember(answer, share, rank, key, site)

    def _counts(self, answer: _Answer, value: float, rank: int, key: str) -> bool:
        """Whether feedback says anything new; if so, what it replaces is taken out."""
        known = self._learned.get(answer.request_id, ())
        same = [entry for entry in known if (entry.rank, entry.key) == (rank, key)]
        if any(e.rank > rank for e in known) or any(e.value == value for e in same):
            return False
        replaced = [entry for entry in known if entry.rank < rank] + same
        for entry in replaced:
            answer.arm.unlearn(answer.x, entry.site.scaled(answer.arm.decay / entry.decay))
        if replaced:
            kept = tuple(entry for entry in known if entry not in replaced)
            self._learned[answer.request_id] = kept
        return True

    def _remember(self, answer: _Answer, value: float, rank: int, key: str, site: Site) -> None:
        entry = _Learned(value, rank, key, site, answer.arm.decay)
        known = self._learned.get(answer.request_id, ())
        remember(self._learned, answer.request_id, (*known, entry), _REMEMBERED)
