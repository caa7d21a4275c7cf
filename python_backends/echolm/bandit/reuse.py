"""Whether a stored answer may be given as it is: one more arm, behind an error bound.

Two kinds of stored answers are told apart. The answer to an *exact* repeat of the request is taken
to be right until comparisons show otherwise. That to a *near* one has to earn it.

What is known comes from comparisons: the strongest LLM answers a request for which there is a
stored answer, and both are compared. The same text is right; a different one is as good as a judge
finds it, and wrong where there is no judge. A logistic model learns from these how probably a near
answer is right, and ranks them. Its word is not enough, since it may be wrong: each comparison is
counted at the rank that the model gave it *before* it learnt from it (progressive validation: Blum,
Kalai and Langford 1999), and answers are given from that rank on above which the comparisons so far
bound the error (selection with guaranteed risk: Geifman and El-Yaniv 2017).

A share of the answers that may be given is drawn to be checked: the strongest LLM answers instead.
So comparisons never cease, and answers that have become outdated are found.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING
from echolm.learning.learner import OutdatedError
from echolm.learning.logistic import GaussianWeights, quality_moments, rating_site
from echolm.learning.snapshot import fingerprint
from echolm.primitives import STORED, Reusable
from echolm.retrieval.record import remember
from echolm.retrieval.reuse import REUSE_FEATURES


def context(found: Reusable) -> NDArray[np.float32]:
    """The context of a decision to give a stored answer: whether it is exact, and its features."""
    return np.concatenate([np.array([found.exact], dtype=np.float32), found.features])


COMPARISON = "comparison"
"""Kind of an event whose body :func:`describe` makes."""

CHECKED_SHARE, CHECKED_SHARE_OF_NEAR = 0.03, 0.1
"""Shares of the answers that may be given from the store that are checked instead."""

_VERSION = 1  # raised whenever events do something else, so that old snapshots are not used
_REMEMBERED = 1_000.0, 4_000.0  # comparisons of either kind after which older ones count 1/e
_PRIOR_WRONG = 2.0  # wrong answers to exact repeats up to which the prior alone keeps the bound
_PRIOR_CONSTANT, _PRIOR_SLOPE, _DEVIATION = 2.0, -1.0, 2.0
_RANKS = np.arange(-2.0, 8.0, 0.5)  # least lower bounds of the log-odds of all ranks but the lowest
_EXACT = len(_RANKS) + 1  # what follows all ranks
# One-sided quantiles of the normal distribution: 95% for one test, and 97.5% for each of several
# that hardly differ, since each rank includes all above it.
_ONE, _OF_MANY = 1.645, 1.96
_MOST_EXAMPLES = 50_000  # of which it is kept that their answer was wrong


@dataclass(frozen=True)
class Comparison:
    """A stored answer compared with a fresh one.

    Attributes:
        found: what retrieval had found, its response aside.
        same: whether the strongest LLM has given the same text.
        right: whether a different text is as good; None if nobody has judged it.
        propensity: the probability with which the strongest LLM was drawn for a check; 0 if it
            answered for another reason.
    """

    id: int
    exact: bool
    features: NDArray[np.float32]
    same: bool
    right: bool | None = None
    propensity: float = 0.0


def describe(compared: Sequence[Comparison]) -> dict[str, Any]:
    """The body of a :data:`COMPARISON`."""
    rows = [{**vars(c), "features": [round(float(v), 4) for v in c.features]} for c in compared]
    return {"compared": rows}


def read(body: Mapping[str, Any]) -> list[Comparison]:
    """What :func:`describe` has described; raises ValueError or another error if it is damaged."""
    compared = [
        Comparison(**{**row, "features": np.array(row["features"], dtype=np.float32)})
        for row in body["compared"]
    ]
    for c in compared:
        if c.features.shape != (len(REUSE_FEATURES),) or not np.isfinite(c.features).all():
            raise ValueError(f"comparison: expected {len(REUSE_FEATURES)} finite features")
        if c.right not in (None, True, False) or c.same not in (True, False):
            raise ValueError(f"comparison: expected truth values, got {c.same} and {c.right}")
    return compared


@dataclass(frozen=True)
class ReuseChoice:
    """What becomes of a stored answer.

    Attributes:
        action: ``give`` it, ``check`` it by a fresh answer of the strongest LLM, or ``leave`` it
            and let an LLM be chosen.
        propensity: the probability with which that was drawn.
        probability: that it is right.
    """

    action: Literal["give", "check", "leave"]
    propensity: float
    probability: float


@dataclass(frozen=True)
class ReuseEstimate:
    """What is known of a stored answer for the request that it was found for.

    Attributes:
        probability: that it is right.
        allowed: whether the error of such answers is bounded.
        refuted: whether this example's answer was found wrong and not right as often since.
    """

    probability: float
    allowed: bool
    refuted: bool = False


class ReuseModel:
    """Learns how probably stored answers are right. Any thread may read it while one learns.

    Args:
        error: largest share of the answers given from the store that may be wrong, above 0.
    """

    name = "reuse"
    kinds = frozenset({COMPARISON, RATING, PREFERENCE})

    def __init__(self, error: float) -> None:
        self._error = error
        means = [_PRIOR_CONSTANT if n == "constant" else _PRIOR_SLOPE for n in REUSE_FEATURES]
        deviations = np.full(len(means), _DEVIATION)
        self._weights = GaussianWeights.independent(np.array(means), deviations)
        # Comparisons by rank, of exact repeats last: all, with different texts, of these judged,
        # and of these wrong.
        self._counts = np.zeros((4, _EXACT + 1))
        self._counts[0, _EXACT] = _most_events(np.array(_PRIOR_WRONG), _ONE) / error
        # Times that an example's answer was wrong and right since, to exact repeats and others.
        self._refuted: OrderedDict[tuple[int, bool], tuple[int, int]] = OrderedDict()
        self._rated: OrderedDict[str, bool] = OrderedDict()
        prior = [*means, *deviations.tolist(), *_RANKS.tolist(), *_REMEMBERED, _PRIOR_WRONG]
        self.fingerprint = fingerprint({"version": _VERSION, "error": error, "prior": prior})
        self._solve()

    def estimate(self, found: Reusable) -> ReuseEstimate:
        """What is known of a stored answer."""
        weights, least, exact = self._solved
        wrong, right = self._refuted.get((found.id, found.exact), (0, 0))
        if found.exact:
            return ReuseEstimate(*exact, wrong > right)
        mean, std = _log_odds(weights, found.features)
        probability = float(quality_moments(np.array([mean]), np.array([std]))[0][0])
        return ReuseEstimate(probability, _rank(mean - std) >= least, wrong > right)

    def choose(self, found: Reusable, uniform: float) -> ReuseChoice:
        """Draw what becomes of a stored answer, by a random number that is uniform in [0, 1)."""
        estimate = self.estimate(found)
        if not (estimate.allowed or found.exact):
            return ReuseChoice("leave", 1.0, estimate.probability)
        # Exact repeats are checked even while none is given, or none might ever be again.
        share = CHECKED_SHARE if found.exact else CHECKED_SHARE_OF_NEAR
        if uniform < share:
            return ReuseChoice("check", share, estimate.probability)
        give = estimate.allowed and not estimate.refuted
        return ReuseChoice("give" if give else "leave", 1.0 - share, estimate.probability)

    def apply(self, event: Event) -> None:
        """Learn from comparisons, and from what callers say of answers from the store."""
        if event.kind == COMPARISON:
            for compared in read(event.body):
                self._learn(compared)
            self._solve()
            return
        rated = event.kind == RATING
        # Which of two answers is better says nothing of the better one.
        answer = event.body if rated else event.body["worse"]
        if answer["llm"] != STORED:
            raise OutdatedError("not of an answer from the store")
        right = rated and float(event.body["score"]) >= 0.5
        self._rate(answer, right)
        self._solve()

    def _rate(self, answer: Mapping[str, Any], right: bool) -> None:
        """Learn what a caller says of an answer from the store.

        A poor answer to an exact repeat stops this example only: a fresh one might be as poor. That
        to another request is taken to be wrong. Good ratings are no comparisons, which a caller
        cannot make.
        """
        [id], [exact, *features] = answer["example_ids"], answer["context"]
        x = np.array(features, dtype=np.float32)
        if x.shape != (len(REUSE_FEATURES),) or not np.isfinite(x).all():
            raise ValueError(f"context: expected {len(REUSE_FEATURES)} finite features")
        request_id = answer["request_id"]
        if self._rated.get(request_id) == right:
            raise OutdatedError("rated so already")
        remember(self._rated, request_id, right, _MOST_EXAMPLES)
        if exact or right:
            self._note(int(id), bool(exact), right)
        else:
            wrong = Comparison(int(id), False, x, same=False, right=False)
            self._learn(wrong, given=True)

    def _learn(self, compared: Comparison, given: bool = False) -> None:
        """Count a comparison, and learn from it if it is no exact repeat.

        Args:
            given: whether the answer was given; others are no matter of their example's record,
                unless they would have been.
        """
        different, judged = not compared.same, compared.right is not None
        wrong = compared.right is False
        if compared.exact:
            rank, given = _EXACT, True
        else:
            mean, std = _log_odds(self._weights, compared.features)
            rank = _rank(mean - std)
            score = float(compared.same or compared.right is True)
            if different and not judged:
                _, _, n, bad = self._counts[:, :_EXACT].sum(axis=1)
                score = (n - bad) / (n + 1.0)
            x = compared.features.astype(np.float64)
            self._weights = self._weights.updated(x, rating_site(mean, std**2, score))
            given = given or rank >= self._solved[1]
        times_wrong, times_right = self._refuted.get((compared.id, compared.exact), (0, 0))
        if given and (compared.same or judged):
            self._note(compared.id, compared.exact, not wrong)
        if times_wrong > times_right:
            return  # it is not given, and says nothing of those that are
        kinds = slice(_EXACT, None) if compared.exact else slice(_EXACT)
        self._counts[:, kinds] *= 1.0 - 1.0 / _REMEMBERED[0 if compared.exact else 1]
        self._counts[:, rank] += (1.0, different, judged, wrong)

    def _note(self, id: int, exact: bool, right: bool) -> None:
        """Remember that an example's answer was wrong, until it was right as often."""
        key = id, exact
        times_wrong, times_right = self._refuted.get(key, (0, 0))
        if not right:
            remember(self._refuted, key, (times_wrong + 1, 0), _MOST_EXAMPLES)
        elif times_wrong:
            remember(self._refuted, key, (times_wrong, times_right + 1), _MOST_EXAMPLES)

    def _solve(self) -> None:
        """Find what may be given; it is replaced as a whole for those who read meanwhile."""
        sums = np.cumsum(self._counts[:, _EXACT - 1 :: -1], axis=1)[:, ::-1]
        holding = np.flatnonzero(_error_bound(sums, _OF_MANY) <= self._error)
        least = int(holding[0]) if holding.size else _EXACT
        total, different, judged, wrong = exact = self._counts[:, _EXACT]
        expected = (different + 0.5) / (total + 1.0) * (wrong + 0.5) / (judged + 0.5)
        allowed = bool(_error_bound(exact, _ONE) <= self._error)
        self._solved = (self._weights, least, (1.0 - float(expected), allowed))

    def state(self) -> dict[str, Any]:
        """All that was learnt."""
        rows = [[*key, *times] for key, times in self._refuted.items()]
        return {
            "mean": self._weights.mean,
            "covariance": self._weights.covariance,
            "counts": self._counts.copy(),
            "refuted": np.array(rows, dtype=np.int64).reshape(-1, 4),
            "rated": [[request_id, right] for request_id, right in self._rated.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a :meth:`state`."""
        rows = state["refuted"].tolist()
        self._refuted = OrderedDict(((id, bool(e)), (wrong, right)) for id, e, wrong, right in rows)
        self._rated = OrderedDict((request_id, right) for request_id, right in state["rated"])
        self._weights = GaussianWeights(state["mean"], state["covariance"])
        self._counts = np.array(state["counts"], dtype=np.float64)
        self._solve()


def _log_odds(weights: GaussianWeights, features: NDArray[np.float32]) -> tuple[float, float]:
    mean, variance = weights.at(features.astype(np.float64))
    return mean, math.sqrt(variance)


def _rank(lower: float) -> int:
    return int(np.searchsorted(_RANKS, lower, side="right"))


def _error_bound(counts: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """Upper bound of the share of wrong answers, by columns of comparisons, [4, …].

    Both factors are bounded: how many texts differ, and how many of these are wrong.
    """
    total, different, judged, wrong = counts

    def share(events: NDArray[np.float64], trials: NDArray[np.float64]) -> NDArray[np.float64]:
        most = _most_events(events, quantile) / np.maximum(trials, 1e-9)
        return np.asarray(np.minimum(1.0, most))

    return np.asarray(share(different, total) * share(wrong, judged))


def _most_events(events: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """Upper confidence bound of the expected number of events where so many were seen.

    It is Poisson's exact bound, half of a chi-square quantile of 2 (events + 1) degrees of freedom,
    by the approximation of Wilson and Hilferty (1931), which takes fractions of events, too.
    """
    degrees = 2.0 * (events + 1.0)
    spread = 2.0 / (9.0 * degrees)
    return np.asarray(0.5 * degrees * (1.0 - spread + quantile * np.sqrt(spread)) ** 3)
