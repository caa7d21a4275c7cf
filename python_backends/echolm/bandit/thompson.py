"""Thompson sampling on Bayesian linear models: the Request Router of the paper (§4.2).

One linear model per LLM (arm) predicts the quality of its answer from the context x. An arm is
drawn with the probability that it is the best, after cost and load are charged. The probability is
computed, not only sampled, so that logged decisions can be evaluated off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.arms import BayesianLinearArm, Context, SolvedPosterior
from echolm.bandit.rating_value import value_of_rating
from echolm.primitives import Choice

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # type: ignore[no-untyped-call]
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class ThompsonSampling:
    """The bandit over LLMs.

    Args:
        costs: relative cost of each arm.
        cost_weight: quality that one unit of cost is worth.
        exploration_floor: least probability of any eligible arm.
        exploration: scales the posterior's standard deviations when an arm is drawn. 1 is Thompson
            sampling; less suits arms whose qualities differ by little, and few ratings.
    """

    def __init__(
        self,
        arms: Mapping[str, BayesianLinearArm],
        costs: Mapping[str, float],
        cost_weight: float,
        exploration_floor: float,
        exploration: float = 1.0,
    ) -> None:
        if exploration_floor * len(arms) > 1:
            most = f"1/{len(arms)} with {len(arms)} arms"
            raise ValueError(f"exploration_floor: expected at most {most}, got {exploration_floor}")
        self.arms = dict(arms)
        self._costs = dict(costs)
        self._cost_weight = cost_weight
        self._floor = exploration_floor
        self._exploration = exploration
        self._stacked: tuple[list[SolvedPosterior], NDArray[np.float64]] = ([], np.empty(0))

    def choose(self, x: Context, biases: Mapping[str, float], rng: np.random.Generator) -> Choice:
        """Draw an arm for one context, [d], as in :meth:`choose_many`."""
        return self.choose_many(x[None], biases, rng)[0]

    def choose_many(
        self, X: Context, biases: Mapping[str, float], rng: np.random.Generator
    ) -> list[Choice]:
        """Draw an arm for each of several requests.

        Args:
            X: the contexts, [n, d].
            biases: what load takes off each arm's score; a missing arm has no bias.

        Raises:
            ValueError: a context is not finite.
        """
        means, stds = self._predict(X)
        penalties = [self._cost_weight * self._costs[n] + biases.get(n, 0.0) for n in self.arms]
        scores = means - np.array(penalties)
        if not np.isfinite(scores).all():
            raise ValueError("context: expected finite numbers, got NaN or infinity")
        best = probability_of_best(scores, self._exploration * stds)
        columns = (best, means, scores, stds, rng.random(len(X)))
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [self._draw(*row) for row in rows]

    def _draw(
        self,
        best: list[float],
        means: list[float],
        scores: list[float],
        stds: list[float],
        uniform: float,
    ) -> Choice:
        """One decision; in plain Python, which for a handful of arms is faster than numpy."""
        names, n = list(self.arms), len(best)
        # Mixing with a uniform draw keeps every arm's propensity above the floor.
        probabilities = [(1 - self._floor * n) * p + self._floor for p in best]
        drawn, below = 0, probabilities[0]
        while drawn < n - 1 and uniform >= below:
            drawn += 1
            below += probabilities[drawn]
        return Choice(
            arm=names[drawn],
            propensity=probabilities[drawn],
            probabilities=dict(zip(names, probabilities, strict=True)),
            quality=min(1.0, max(0.0, means[drawn])),
            rating_value=value_of_rating(scores, stds, drawn, self.arms[names[drawn]].noise),
        )

    def _predict(self, X: Context) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means and standard deviations of all arms' qualities, FP64 [n, arms] each."""
        solved = [arm.solved() for arm in self.arms.values()]
        # Solutions are replaced as a whole, so the same ones mean the same posteriors.
        if list(map(id, solved)) != list(map(id, self._stacked[0])):
            rows = np.concatenate([np.vstack([arm.W, arm.mean]) for arm in solved])
            self._stacked = (solved, rows)
        k, d = len(solved), X.shape[1]
        # One product for all arms and requests gives W @ x and the mean at x of each arm.
        products = (self._stacked[1] @ X.T.astype(np.float64)).reshape(k, d + 1, len(X))
        deviations = products[:, :d]
        variances = np.einsum("kdn,kdn->nk", deviations, deviations)
        return products[:, d].T, np.sqrt(variances)

    def learn(self, arm: str, x: Context, reward: float) -> None:
        """Take in a rating of an arm's answer; KeyError if there is no such arm.

        Time passes for the other arms, too: they forget a step, so that an arm that was poor
        and is seldom drawn widens again, and is found to be better if it has become so
        (weighted linear bandits: Russac, Vernade and Cappé 2019).
        """
        self.arms[arm].learn(x, reward)
        for name, other in self.arms.items():
            if name != arm:
                other.forget()


def probability_of_best(
    means: Sequence[float] | NDArray[np.float64], stds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P(arm i has the largest value) for independent normal values.

    For two arms it is exact. For more it is computed by Gauss-Hermite quadrature, over each arm's
    value, of the product of the other arms' distribution functions.

    All are FP64 [n], or [..., n] for several draws; the result's last axis sums to 1.
    """
    means = np.asarray(means, dtype=np.float64)
    stds = np.maximum(np.asarray(stds, dtype=np.float64), 1e-9)
    n = means.shape[-1]
    if n == 1:
        return np.ones_like(means)
    if n == 2:
        gap = means[..., 0] - means[..., 1]
        z = gap / np.hypot(stds[..., 0], stds[..., 1])
        # With one number for each draw, the exact function is fast enough.
        exact = [0.5 * math.erfc(v) for v in (z.ravel() / -math.sqrt(2.0)).tolist()]
        result = np.empty_like(means)
        result[..., 0] = np.array(exact).reshape(z.shape)
        result[..., 1] = 1.0 - result[..., 0]
        return result
    # [..., arm i, node, arm j]: where a value of arm i stands in arm j's distribution.
    values = means[..., :, None] + stds[..., :, None] * _NODES
    z = (values[..., None] - means[..., None, None, :]) / stds[..., None, None, :]
    below = _normal_cdf(z)
    itself = np.arange(n)
    below[..., itself, :, itself] = 1.0
    result = below.prod(axis=-1) @ _WEIGHTS
    total = result.sum(axis=-1, keepdims=True)
    # Far-apart narrow arms can fall between the nodes; the largest mean wins then.
    largest = np.eye(n)[means.argmax(axis=-1)]
    return np.where(total > 1e-9, result / np.maximum(total, 1e-9), largest)


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
