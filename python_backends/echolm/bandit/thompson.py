"""Thompson sampling on Bayesian logistic models: the Request Router of the paper (§4.2).

One model per LLM (arm) predicts the quality of its answer from the context x. An arm is drawn with
the probability that it is the best, after cost and load are charged. The probability is computed,
not only sampled, so that logged decisions can be evaluated off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.arms import Context, LogisticArm
from echolm.bandit.features import HAS_EXAMPLES
from echolm.bandit.rating_value import value_of_rating
from echolm.learning.logistic import (
    GaussianWeights,
    Site,
    comparison_sites,
    quality_moments,
    rating_site,
    sigmoids,
)
from echolm.primitives import Choice

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # type: ignore[no-untyped-call]
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
# How far ratings lie from what is expected is learnt from about this many of them, by its weight
# against that of a coin's ratings; less than a tenth of a coin's variance is not believed.
_DISPERSION_MEMORY, _DISPERSION_PRIOR, _LEAST_DISPERSION = 2_000.0, 2.0, 0.1
# Pieces of evidence until which arms are drawn as by Thompson sampling, whatever `exploration`;
# with more the caution grows, as their square root.
_KNOWN = 30.0


class ThompsonSampling:
    """The bandit over LLMs.

    Args:
        costs: relative cost of each arm.
        cost_weight: quality that one unit of cost is worth, where a request does not say it.
        exploration_floor: least probability of an eligible arm, if cost is no matter.
        exploration: scales the posterior's standard deviations when an arm is drawn. 1 is Thompson
            sampling; less suits arms whose qualities differ by little, and few ratings. It holds
            once an arm has a few hundred pieces of evidence; before, there is nothing yet to be
            cautious with.
    """

    def __init__(
        self,
        arms: Mapping[str, LogisticArm],
        costs: Mapping[str, float],
        cost_weight: float,
        exploration_floor: float,
        exploration: float = 1.0,
    ) -> None:
        if exploration_floor * len(arms) > 1:
            most = f"1/{len(arms)} with {len(arms)} arms"
            raise ValueError(f"exploration_floor: expected at most {most}, got {exploration_floor}")
        self.arms = dict(arms)
        self.costs = dict(costs)
        self.cost_weight = cost_weight
        self._floor = exploration_floor
        self._exploration = exploration
        self._squares = self._expected = _DISPERSION_PRIOR
        self._stacked: tuple[list[GaussianWeights], NDArray[np.float64], NDArray[np.float64]]
        self._stacked = ([], np.empty(0), np.empty(0))

    @property
    def dispersion(self) -> float:
        """Variance of a rating over that of a coin of the same mean, in (0, 1].

        Ratings of right and wrong have 1; graded ones lie nearer to what is expected, so each of
        them says more.
        """
        return min(1.0, max(_LEAST_DISPERSION, self._squares / self._expected))

    def choose(
        self,
        x: Context,
        biases: Mapping[str, float],
        rng: np.random.Generator,
        eligible: NDArray[np.bool_] | None = None,
    ) -> Choice:
        """Draw an arm for one context, [d], as in :meth:`choose_many`."""
        rows = None if eligible is None else eligible[None]
        return self.choose_many(x[None], biases, rng, rows)[0]

    def choose_many(
        self,
        X: Context,
        biases: Mapping[str, float],
        rng: np.random.Generator,
        eligible: NDArray[np.bool_] | None = None,
        bonuses: NDArray[np.float64] | None = None,
        cost_weights: Sequence[float | None] = (),
    ) -> list[Choice]:
        """Draw an arm for each of several requests.

        Args:
            X: the contexts, [n, d].
            biases: what load takes off each arm's score; a missing arm has no bias.
            bonuses: what is added to each arm's score for each request, FP64 [n, arms]; None:
                nothing.
            eligible: which arms may be drawn, BOOL [n, arms], at least one in each row; None: all.
            cost_weights: of each request; None, as none at all, stands for the bandit's own.

        Raises:
            ValueError: a context is not finite.
        """
        means, stds = self.predict(X)
        if not np.isfinite(means).all():
            raise ValueError("context: expected finite numbers, got NaN or infinity")
        weights = [self.cost_weight if w is None else w for w in cost_weights or (None,)]
        costs = np.outer(weights, [self.costs[name] for name in self.arms])  # [1 or n, arms]
        penalties = costs + [biases.get(name, 0.0) for name in self.arms]
        if bonuses is not None:
            penalties = penalties - bonuses
        if eligible is None:
            eligible = np.ones(means.shape, dtype=np.bool_)
        best = probability_of_best(means, self._explored(X) * stds, penalties, eligible)
        # Mixing with a draw at random keeps every eligible arm's propensity above its floor.
        floors = self._floors(costs) * eligible
        best = best * (1.0 - floors.sum(axis=1, keepdims=True)) + floors
        qualities, spreads = quality_moments(means, stds)
        scores = np.where(eligible, qualities - penalties, -np.inf)
        doubts = _doubts(scores, spreads)
        columns = (best, qualities, scores, spreads, doubts, rng.random(len(X)))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [self._draw(*row) for row in rows]

    def _explored(self, X: Context) -> NDArray[np.float64]:
        """By what the standard deviations are scaled, by the evidence of such requests, [n, arms].

        What an arm does without examples says little of what it does with them, so both count
        apart.
        """
        least = self._exploration
        if not least:
            return np.zeros((len(X), len(self.arms)))
        evidence = np.array([arm.evidence for arm in self.arms.values()]).T
        scales = np.clip(np.sqrt(_KNOWN / np.maximum(evidence, 1.0)), least, max(least, 1.0))
        return np.asarray(scales[(X[:, HAS_EXAMPLES] != 0).astype(np.intp)])

    def _draw(
        self,
        probabilities: list[float],
        qualities: list[float],
        scores: list[float],
        spreads: list[float],
        doubt: float,
        uniform: float,
    ) -> Choice:
        """One decision; in plain Python, which for a handful of arms is faster than numpy."""
        below, drawn = 0.0, 0
        for k, probability in enumerate(probabilities):
            if probability > 0.0:
                drawn = k
                below += probability
                if uniform < below:
                    break
        quality = qualities[drawn]
        noise = math.sqrt(quality * (1.0 - quality) * self.dispersion)
        return Choice(
            arm=list(self.arms)[drawn],
            propensity=probabilities[drawn],
            probabilities=dict(zip(self.arms, probabilities, strict=True)),
            quality=quality,
            rating_value=value_of_rating(scores, spreads, drawn, noise),
            doubt=doubt,
        )

    def _floors(self, costs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Least probability of each arm, by what it costs in quality, FP64 [n, arms].

        The more an arm costs, the less it can win by being better than is thought: where cost takes
        off half of the quality that there is to win, it is tried half as often, and an arm that
        costs more than any quality is worth is not tried at all.
        """
        above = costs - costs.min(axis=1, keepdims=True)
        return np.asarray(self._floor * np.clip(1.0 - above, 0.0, 1.0))

    def predict(self, X: Context) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and standard deviations of all arms' log-odds, FP64 [n, arms] each."""
        weights = [arm.weights for arm in self.arms.values()]
        # Posteriors are replaced as a whole, so the same objects hold the same numbers.
        if list(map(id, weights)) != list(map(id, self._stacked[0])):
            means = np.stack([w.mean for w in weights])
            covariances = np.concatenate([w.covariance for w in weights], axis=1)
            self._stacked = (weights, means, covariances)
        _, means, covariances = self._stacked
        X = X.astype(np.float64)
        # One product for all arms and requests.
        products = (X @ covariances).reshape(len(X), len(weights), X.shape[1])
        variances = np.einsum("nkd,nd->nk", products, X)
        return X @ means.T, np.sqrt(np.maximum(variances, 0.0))

    def qualities(self, X: Context) -> NDArray[np.float64]:
        """The expected quality of all arms' answers, FP64 [n, arms]."""
        return quality_moments(*self.predict(X))[0]

    def learn(self, arm: str, x: Context, score: float) -> Site:
        """Take in a rating of an arm's answer, 0..1; KeyError if there is no such arm.

        Returns:
            What it has added to the arm.
        """
        rated = self.arms[arm]
        expected = rated.quality(x)
        keep = 1.0 - 1.0 / _DISPERSION_MEMORY
        self._squares = keep * self._squares + (score - expected) ** 2
        self._expected = keep * self._expected + expected * (1.0 - expected)
        mean, std = rated.predict(x)
        site = rating_site(mean, max(std**2, 1e-9), score, 1.0 / self.dispersion)
        rated.learn(x, site)
        return site

    def compare(
        self, better: str, x_better: Context, worse: str, x_worse: Context, share: float
    ) -> tuple[Site, Site]:
        """What a comparison of two answers says about each; see :func:`comparison_sites`.

        Nothing is learnt yet.
        """
        sides = []
        for name, x in ((better, x_better), (worse, x_worse)):
            mean, std = self.arms[name].predict(x)
            sides.append((mean, max(std**2, 1e-9)))
        return comparison_sites(sides[0], sides[1], share)

    def forget(self, now_ms: int) -> None:
        """Let time pass for all arms."""
        for arm in self.arms.values():
            arm.forget(now_ms)

    def state(self) -> dict[str, Any]:
        """What was learnt, for :meth:`restore`."""
        arms = {name: arm.state() for name, arm in self.arms.items()}
        return {"arms": arms, "squares": self._squares, "expected": self._expected}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if an arm has another number of weights."""
        for name, arm in self.arms.items():
            arm.restore(state["arms"][name])
        self._squares, self._expected = float(state["squares"]), float(state["expected"])


def probability_of_best(
    means: NDArray[np.float64],
    stds: NDArray[np.float64],
    penalties: NDArray[np.float64],
    eligible: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """P(arm i has the largest sigma(eta) - penalty) for independent eta ~ N(mean, std^2).

    It is computed by Gauss-Hermite quadrature, over each arm's eta, of the product of the other
    arms' distribution functions.

    Args:
        means, stds, eligible: [n, arms]; of each row at least one arm is eligible.
        penalties: [arms], or [n, arms].

    Returns:
        FP64 [n, arms]; each row sums to 1 and is 0 where an arm is not eligible.
    """
    stds, penalties = np.maximum(stds, 1e-6), np.broadcast_to(penalties, means.shape)
    # [n, arm i, node, arm j]: where a value of arm i stands in arm j's distribution.
    etas = means[..., None] + stds[..., None] * _NODES
    values = sigmoids(etas) - penalties[..., None]
    reach = values[..., None] + penalties[:, None, None, :]  # what arm j's quality must stay below
    inside = np.clip(reach, 1e-12, 1.0 - 1e-12)
    z = (np.log(inside) - np.log1p(-inside) - means[:, None, None, :]) / stds[:, None, None, :]
    below = np.where(reach <= 0.0, 0.0, np.where(reach >= 1.0, 1.0, _normal_cdf(z)))
    itself = np.arange(means.shape[1])
    below[:, itself, :, itself] = 1.0
    below = np.where(eligible[:, None, None, :], below, 1.0)
    result = (below.prod(axis=-1) @ _WEIGHTS) * eligible
    total = result.sum(axis=-1, keepdims=True)
    # Far-apart narrow arms can fall between the nodes; the largest mean wins then.
    scores = np.where(eligible, sigmoids(means) - penalties, -np.inf)
    largest = np.eye(means.shape[1])[scores.argmax(axis=-1)]
    return np.where(total > 1e-9, result / np.maximum(total, 1e-9), largest)


def _doubts(scores: NDArray[np.float64], spreads: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that the arm which seems best is worse than the next one, FP64 [n].

    Args:
        scores, spreads: mean and standard deviation of what each arm is worth, [n, arms].
    """
    if scores.shape[1] < 2:
        return np.zeros(len(scores))
    order = np.argsort(scores, axis=1)[:, -2:]
    worse, best = np.take_along_axis(scores, order, axis=1).T
    spread = np.hypot(*np.take_along_axis(spreads, order, axis=1).T)
    return _normal_cdf((worse - best) / np.maximum(spread, 1e-9))


def _normal_cdf(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard normal distribution function, relative error below 1.2e-7.

    It uses the rational Chebyshev approximation of erfc of Numerical Recipes (§6.2), since numpy
    has no erfc and math.erfc takes one number at a time.
    """
    a = np.abs(z) * (1 / math.sqrt(2.0))
    t = 1.0 / (1.0 + 0.5 * a)
    polynomial = np.full_like(t, _ERFC[0])
    for coefficient in _ERFC[1:]:
        polynomial *= t
        polynomial += coefficient
    upper = 0.5 * t * np.exp(polynomial - a * a)
    return np.where(z >= 0, 1.0 - upper, upper)


_ERFC = (
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
    -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223,
)  # fmt: skip
