"""What another policy would have earned, estimated from logged decisions.

Estimators of Dudík, Langford and Li, "Doubly Robust Policy Evaluation and Learning" (ICML 2011,
arXiv 1103.4601); the self-normalised one of Swaminathan and Joachims (NeurIPS 2015). With
contexts x, arms a drawn with logged propensities p and rewards r, a target policy pi(a|x) has
the importance weights w = pi(a|x) / p. Only some decisions are rated, with a probability that
depends on x and on the arm; each rating stands for s decisions, the inverse of its probability
(Horvitz and Thompson 1952). Callers answer when they like, so only the ratio of two values of s
is known, and sums are divided by sums (Hájek 1971):

- IPS: sum of s w r over sum of s. Right where p > 0 wherever pi > 0; large weights make it noisy.
- SNIPS: sum of s w r over sum of s w. Less noisy, stays within the rewards' range, and shifts
  with them.
- DR: sum of s (sum_a pi(a|x) q(x, a) + w (r - q(x, a))) over sum of s, with a model q of the
  reward. Right if either the propensities or q are; noisy only by what q leaves unexplained.

Which ratings are such samples: :mod:`echolm.learning.logged_ratings`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError

Probabilities = NDArray[np.float64]
"""A target policy at the logged contexts: pi(a|x), FP64 [n, arms], rows that sum to 1."""


@dataclass(frozen=True)
class LoggedDecisions:
    """Decisions whose answers were rated.

    Attributes:
        arms: names of all arms, [k].
        contexts: FP64 [n, d].
        drawn: index of the arm that was drawn, INT64 [n]; -1 for one that is not in ``arms``.
        propensities: probability with which it was drawn, FP64 [n], in (0, 1].
        rewards: FP64 [n].
        weights: decisions that each stands for, up to a factor common to its kind, FP64 [n]; 1 by
            default.
        requests: number of the request, INT64 [n]: answers of one request are not independent. By
            default each row is a request.
        order: when each was rated first, as the number of the event in the log, INT64 [n].
        kinds: which of the kinds of ratings each is, as an index, INT64 [n]. Each kind is a sample
            of all decisions, of its own unknown size. By default there is one.
        kind_names: of the kinds; see ``Ratings``.

    Raises:
        InvalidRequestError: sizes do not fit, or a value is out of range.
    """

    arms: tuple[str, ...]
    contexts: NDArray[np.float64]
    drawn: NDArray[np.int64]
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    requests: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    order: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    kinds: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    kind_names: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        n = len(self.rewards)
        numbers = np.arange(n)
        defaults = {"weights": np.ones(n), "requests": numbers, "order": numbers}
        defaults["kinds"] = np.zeros(n, dtype=np.int64)
        for name, default in defaults.items():
            if not len(getattr(self, name)):
                object.__setattr__(self, name, default)
        columns = [getattr(self, name) for name in _COLUMNS]
        sizes = [len(column) for column in columns]
        if n == 0 or self.contexts.ndim != 2 or sizes != [n] * len(columns):
            expected = "at least one, with as many values of each kind"
            raise InvalidRequestError.of("decisions", expected, [n, *sizes])
        if not ((self.propensities > 0) & (self.propensities <= 1)).all():
            raise InvalidRequestError.of("propensities", "numbers in (0, 1]", "others")
        if not ((self.weights > 0) & np.isfinite(self.weights)).all():
            raise InvalidRequestError.of("weights", "numbers above 0", "others")
        if not ((self.drawn >= -1) & (self.drawn < len(self.arms))).all():
            raise InvalidRequestError.of("drawn", f"indices below {len(self.arms)}", "others")

    def __len__(self) -> int:
        return len(self.rewards)

    def part(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> LoggedDecisions:
        """Some of the decisions."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    def sources(self) -> dict[str, int]:
        """How many ratings are of which kind."""
        found = Counter(self.kind_names[k] for k in self.kinds.tolist())
        return dict(found)

    def always(self, arm: str) -> Probabilities:
        """The policy that always draws one arm."""
        return np.tile(np.eye(len(self.arms))[self.arms.index(arm)], (len(self), 1))


_COLUMNS = [f.name for f in fields(LoggedDecisions) if f.name not in ("arms", "kind_names")]


@dataclass(frozen=True)
class Estimate:
    """An estimated mean reward.

    Attributes:
        standard_error: NaN if there is but one request.
        effective_sample_size: (sum s w)^2 / sum (s w)^2, of all kinds together: decisions drawn by
            the target itself that would say as much.
        clipped: share of the importance weights that were cut to the limit, which makes a bias.
    """

    value: float
    standard_error: float
    effective_sample_size: float
    clipped: float


def logged_mean(log: LoggedDecisions) -> Estimate:
    """The mean reward of the policy that was followed."""
    return _ratio(log, log.rewards, np.ones(len(log)), np.ones(len(log)), 0.0)


def ips(log: LoggedDecisions, target: Probabilities, max_weight: float = math.inf) -> Estimate:
    """Inverse propensity score; NaN if the log holds nothing that the target would draw.

    Args:
        max_weight: larger importance weights are cut to this: less noise, some bias.

    Raises:
        InvalidRequestError: the target does not fit the log.
    """
    w, clipped = _importance(log, target, max_weight)
    return _ratio(log, w * log.rewards, np.ones(len(log)), w, clipped)


def snips(log: LoggedDecisions, target: Probabilities, max_weight: float = math.inf) -> Estimate:
    """Self-normalised inverse propensity score; see :func:`ips`."""
    w, clipped = _importance(log, target, max_weight)
    return _ratio(log, w * log.rewards, w, w, clipped)


def doubly_robust(
    log: LoggedDecisions,
    target: Probabilities,
    reward_model: NDArray[np.float64],
    max_weight: float = math.inf,
) -> Estimate:
    """Doubly robust estimate; other arguments as in :func:`ips`.

    ``reward_model`` is q(x, a) at the logged contexts, FP64 [n, arms]; each row from a model that
    has not learnt from that row's reward (see :func:`fit_reward_model`).
    """
    if reward_model.shape != target.shape:
        raise InvalidRequestError.of("reward_model", f"shape {target.shape}", reward_model.shape)
    w, clipped = _importance(log, target, max_weight)
    direct = (target * reward_model).sum(axis=1)
    # Of an arm that is not among these nothing is predicted, and its importance weight is 0.
    residual = log.rewards - reward_model[np.arange(len(log)), log.drawn]
    return _ratio(log, direct + w * residual, np.ones(len(log)), w, clipped)


def fit_reward_model(
    log: LoggedDecisions, folds: int = 5, ridge: float = 1.0
) -> NDArray[np.float64]:
    """q(x, a) by ridge regression per arm, cross-fitted: FP64 [n, arms].

    The values of each fold come from models of the other folds, so no reward is predicted from
    itself and DR stays unbiased. Decisions go to the folds in turn. An arm without data is taken
    to earn the mean of all.
    """
    n, k = len(log), len(log.arms)
    q = np.empty((n, k))
    X = np.hstack([np.ones((n, 1)), log.contexts])
    fold = np.arange(n) % max(2, folds)
    penalty = ridge * np.eye(X.shape[1])
    penalty[0, 0] = 1e-9  # the intercept is free
    for f in np.unique(fold):
        training, held_out = fold != f, fold == f
        mean = float(log.rewards[training].mean()) if training.any() else 0.5
        for arm in range(k):
            rows = training & (log.drawn == arm)
            A, y = X[rows], log.rewards[rows] - mean  # without rows the weights are 0
            q[held_out, arm] = mean + X[held_out] @ np.linalg.solve(A.T @ A + penalty, A.T @ y)
    return q


def _importance(
    log: LoggedDecisions, target: Probabilities, max_weight: float
) -> tuple[NDArray[np.float64], float]:
    """Importance weights, FP64 [n], and the share that was clipped."""
    shape = (len(log), len(log.arms))
    if target.shape != shape:
        raise InvalidRequestError.of("target", f"probabilities of shape {shape}", target.shape)
    if (target < 0).any() or not np.allclose(target.sum(axis=1), 1.0, atol=1e-6):
        raise InvalidRequestError.of("target", "probabilities that sum to 1 in each row", "others")
    wanted = np.where(log.drawn >= 0, target[np.arange(len(log)), log.drawn], 0.0)
    w = wanted / log.propensities
    return np.minimum(w, max_weight), float((w > max_weight).mean())


def _ratio(
    log: LoggedDecisions,
    terms: NDArray[np.float64],
    units: NDArray[np.float64],
    w: NDArray[np.float64],
    clipped: float,
) -> Estimate:
    """Sum of the weighted terms over that of the weighted units.

    Each kind of ratings gives an estimate of its own, and their mean errs least if each counts by
    its effective sample size. The standard error is the delta method's, over requests.
    """
    value = effective = 0.0
    errors = np.zeros(len(log))
    for kind in np.unique(log.kinds):
        rows = log.kinds == kind
        s, sw = log.weights[rows], log.weights[rows] * w[rows]
        if not sw.any():
            continue  # it says nothing about the target
        size = float(sw.sum() ** 2 / (sw**2).sum())
        total = float(s @ units[rows])
        own = float(s @ terms[rows]) / total
        errors[rows] = size / total * s * (terms[rows] - own * units[rows])
        value += size * own
        effective += size
    if effective == 0.0:
        return Estimate(math.nan, math.nan, 0.0, clipped)
    n = len(np.unique(log.requests))
    squares = float((np.bincount(log.requests, errors) ** 2).sum())
    error = math.sqrt(squares * n / (n - 1)) / effective if n > 1 else math.nan
    return Estimate(value / effective, error, effective, clipped)
