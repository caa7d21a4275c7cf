"""What another policy would have earned, estimated from logged decisions.

Estimators of Dudík, Langford and Li, "Doubly Robust Policy Evaluation and Learning" (ICML 2011,
arXiv 1103.4601); the self-normalised one of Swaminathan and Joachims (NeurIPS 2015). With
contexts x, arms a drawn with logged propensities p and rewards r, a target policy pi(a|x) has
the importance weights w = pi(a|x) / p:

- IPS: mean of w r. Unbiased where p > 0 wherever pi > 0; large weights make it noisy.
- SNIPS: sum of w r over sum of w. A little biased, far less noisy, stays within the rewards'
  range, and shifts with them.
- DR: mean of sum_a pi(a|x) q(x, a) + w (r - q(x, a)), with a model q of the reward. Unbiased
  if either the propensities or q are right; noisy only by what q leaves unexplained.

They speak of the population that the log is a sample of. Ratings that callers give of their own
accord, or that the router solicits, are not a random sample of all requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.primitives import STORED

Probabilities = NDArray[np.float64]
"""A target policy at the logged contexts: pi(a|x), FP64 [n, arms], rows that sum to 1."""


@dataclass(frozen=True)
class LoggedDecisions:
    """Decisions whose answers were rated.

    Attributes:
        arms: names of all arms, [k].
        contexts: FP64 [n, d].
        drawn: index of the arm that was drawn, INT64 [n].
        propensities: probability with which it was drawn, FP64 [n], in (0, 1].
        rewards: FP64 [n].

    Raises:
        InvalidRequestError: sizes do not fit, or a value is out of range.
    """

    arms: tuple[str, ...]
    contexts: NDArray[np.float64]
    drawn: NDArray[np.int64]
    propensities: NDArray[np.float64]
    rewards: NDArray[np.float64]

    def __post_init__(self) -> None:
        n = len(self.rewards)
        sizes = [len(self.contexts), len(self.drawn), len(self.propensities)]
        if n == 0 or self.contexts.ndim != 2 or sizes != [n] * 3:
            expected = "at least one, with as many values of each kind"
            raise InvalidRequestError.of("decisions", expected, [n, *sizes])
        if not ((self.propensities > 0) & (self.propensities <= 1)).all():
            raise InvalidRequestError.of("propensities", "numbers in (0, 1]", "others")
        if not ((self.drawn >= 0) & (self.drawn < len(self.arms))).all():
            raise InvalidRequestError.of("drawn", f"indices below {len(self.arms)}", "others")

    def __len__(self) -> int:
        return len(self.rewards)

    def part(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> LoggedDecisions:
        """Some of the decisions."""
        names = ("contexts", "drawn", "propensities", "rewards")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def always(self, arm: str) -> Probabilities:
        """The policy that always draws one arm."""
        return np.tile(np.eye(len(self.arms))[self.arms.index(arm)], (len(self), 1))


@dataclass(frozen=True)
class Estimate:
    """An estimated mean reward.

    Attributes:
        standard_error: NaN if there is but one decision.
        effective_sample_size: (sum w)^2 / sum w^2: decisions drawn by the target itself that
            would say as much.
        clipped: share of the weights that were cut to the limit, which makes a bias.
    """

    value: float
    standard_error: float
    effective_sample_size: float
    clipped: float


def ips(log: LoggedDecisions, target: Probabilities, max_weight: float = math.inf) -> Estimate:
    """Inverse propensity score.

    Args:
        max_weight: larger importance weights are cut to this: less noise, some bias.

    Raises:
        InvalidRequestError: the target does not fit the log.
    """
    w, clipped = _weights(log, target, max_weight)
    return _mean(w * log.rewards, w, clipped)


def snips(log: LoggedDecisions, target: Probabilities, max_weight: float = math.inf) -> Estimate:
    """Self-normalised inverse propensity score; arguments as in :func:`ips`.

    NaN if the log holds nothing that the target would draw. The standard error is the delta
    method's.
    """
    w, clipped = _weights(log, target, max_weight)
    total = w.sum()
    if total == 0:
        return Estimate(math.nan, math.nan, 0.0, clipped)
    value = float(w @ log.rewards / total)
    error = math.sqrt(float(((w * (log.rewards - value)) ** 2).sum())) / total
    return Estimate(value, float(error), _effective(w), clipped)


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
    w, clipped = _weights(log, target, max_weight)
    direct = (target * reward_model).sum(axis=1)
    residual = log.rewards - reward_model[np.arange(len(log)), log.drawn]
    return _mean(direct + w * residual, w, clipped)


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


def read_ratings(
    events: Iterable[Event], arms: Sequence[str], revisions: Mapping[str, str] | None = None
) -> tuple[LoggedDecisions, dict[str, int]]:
    """The rated decisions of a learning log, in the order of their first rating.

    The last rating of an answer counts. Others are dropped and counted by reason:

    - ``stored``: the answer came from the store; no LLM was chosen.
    - ``forced``: the caller named the LLM, or another one stood in; nothing was drawn.
    - ``revision``: the answer is an LLM's that was replaced since.
    - ``unknown llm``: no configured LLM has that name.
    - ``damaged``: a field is missing or out of range.
    - ``context``: it has another dimension than most have.

    Args:
        arms: names of the LLMs, in the order of the policies' columns.
        revisions: the current revision of each LLM (default ``""``); None takes all.

    Raises:
        InvalidRequestError: nothing is left.
    """
    index = {name: i for i, name in enumerate(arms)}
    dropped: Counter[str] = Counter()
    found: dict[str, tuple[int, NDArray[np.float64], float, float]] = {}
    for event in events:
        if event.kind != RATING:
            continue
        body = event.body
        try:
            llm, propensity = str(body["llm"]), float(body["propensity"])
            score, request_id = float(body["score"]), str(body["request_id"])
            x = np.asarray(body["context"], dtype=np.float64)
            usable = x.ndim == 1 and np.isfinite(x).all() and 0 <= score <= 1 and propensity > 0
        except (KeyError, TypeError, ValueError, OverflowError):
            usable = False
        if not usable:
            dropped["damaged"] += 1
        elif llm == STORED:
            dropped["stored"] += 1
        elif llm not in index:
            dropped["unknown llm"] += 1
        elif revisions is not None and body.get("revision", "") != revisions.get(llm, ""):
            dropped["revision"] += 1
        elif propensity >= 1.0 and len(arms) > 1:
            dropped["forced"] += 1
        else:
            found[request_id] = (index[llm], x, propensity, score)
    if not found:
        expected = "ratings of answers whose LLM the router drew"
        raise InvalidRequestError.of("learning log", expected, "none")
    [(usual, _)] = Counter(len(row[1]) for row in found.values()).most_common(1)
    kept = [row for row in found.values() if len(row[1]) == usual]
    if len(kept) < len(found):
        dropped["context"] = len(found) - len(kept)
    drawn, contexts, propensities, rewards = map(np.array, zip(*kept, strict=True))
    return LoggedDecisions(tuple(arms), contexts, drawn, propensities, rewards), dict(dropped)


def _weights(
    log: LoggedDecisions, target: Probabilities, max_weight: float
) -> tuple[NDArray[np.float64], float]:
    """Importance weights, FP64 [n], and the share that was clipped."""
    shape = (len(log), len(log.arms))
    if target.shape != shape:
        raise InvalidRequestError.of("target", f"probabilities of shape {shape}", target.shape)
    if (target < 0).any() or not np.allclose(target.sum(axis=1), 1.0, atol=1e-6):
        raise InvalidRequestError.of("target", "probabilities that sum to 1 in each row", "others")
    w = target[np.arange(len(log)), log.drawn] / log.propensities
    return np.minimum(w, max_weight), float((w > max_weight).mean())


def _mean(terms: NDArray[np.float64], w: NDArray[np.float64], clipped: float) -> Estimate:
    n = len(terms)
    error = float(terms.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(float(terms.mean()), error, _effective(w), clipped)


def _effective(w: NDArray[np.float64]) -> float:
    squares = float((w**2).sum())
    return float(w.sum()) ** 2 / squares if squares else 0.0
