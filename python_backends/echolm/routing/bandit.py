"""Thompson sampling on Bayesian linear models: the Request Router of the paper (§4.2).

One linear model per LLM (arm) predicts the quality of its answer from the context x. An arm
is drawn with the probability that it is the best under the posterior, after cost and load
are charged. The probability is computed, not only sampled, so that logged decisions can be
evaluated off-policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.routing.solicitation import value_of_rating

Context = NDArray[np.float32] | NDArray[np.float64]
"""The context x, [d]."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # type: ignore[no-untyped-call]
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class BayesianLinearArm:
    """Posterior of one arm: quality = theta . x + noise, theta ~ N(mean, A^-1).

    Attributes:
        noise: standard deviation of a rating around the model.
        A: precision matrix, FP64 [d, d].
        b: A @ mean, FP64 [d].
        updates: ratings seen, each a step of the discount.
    """

    def __init__(
        self, prior_mean: NDArray[np.float64], prior_precision: float, noise: float, discount: float
    ) -> None:
        """
        Args:
            prior_mean: FP64 [d].
            prior_precision: inverse variance of every weight before any rating.
            noise: standard deviation of a rating around the model.
            discount: weight that the past keeps at each rating, in (0, 1]. What is forgotten
                is replaced by the prior, so an arm that drifts is explored again.
        """
        d = prior_mean.shape[0]
        self._A0 = prior_precision * np.eye(d)
        self._b0 = self._A0 @ prior_mean
        self.noise = noise
        self._inverse_variance = 1.0 / noise**2
        self._discount = discount
        self.A = self._A0.copy()
        self.b = self._b0.copy()
        self.updates = 0
        self._solve()

    def _solve(self) -> None:
        self._covariance = np.linalg.inv(self.A)
        self.mean = self._covariance @ self.b

    def predict(self, x: Context) -> tuple[float, float]:
        """Mean and standard deviation of the expected quality at context x."""
        x = x.astype(np.float64)
        return float(self.mean @ x), math.sqrt(max(0.0, float(x @ self._covariance @ x)))

    def learn(self, x: Context, reward: float) -> None:
        """Take in one rating in [0, 1]."""
        x = x.astype(np.float64)
        keep = self._discount
        self.A = keep * self.A + (1 - keep) * self._A0 + self._inverse_variance * np.outer(x, x)
        self.b = keep * self.b + (1 - keep) * self._b0 + self._inverse_variance * reward * x
        self.updates += 1
        self._solve()

    def correct(self, x: Context, old: float, new: float, learned_at: int) -> None:
        """Replace the reward of a rating learnt when ``updates`` became ``learned_at``."""
        age = self.updates - learned_at
        x = x.astype(np.float64)
        self.b = self.b + self._inverse_variance * (new - old) * x * self._discount**age
        self._solve()

    @property
    def configuration(self) -> dict[str, Any]:
        """All that decides what a rating does to the posterior."""
        return {
            "A0": self._A0,
            "b0": self._b0,
            "inverse_variance": self._inverse_variance,
            "discount": self._discount,
        }

    def state(self) -> dict[str, Any]:
        """The posterior, for :meth:`restore`; later ratings leave it as it is."""
        return {"A": self.A, "b": self.b, "updates": self.updates}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the posterior of an arm of the same configuration."""
        A, b, updates = state["A"], state["b"], state["updates"]
        if A.shape != self.A.shape or b.shape != self.b.shape:
            raise ValueError(f"posterior of {b.shape[0]} weights, expected {self.b.shape[0]}")
        self.A, self.b, self.updates = A, b, int(updates)
        self._solve()


@dataclass(frozen=True)
class Choice:
    """A routing decision.

    Attributes:
        arm: the LLM that was drawn.
        propensity: the probability with which it was drawn.
        probabilities: the same for every eligible arm.
        quality: the model's estimate for the drawn arm, clipped to 0..1.
        spread: standard deviation of the arms' probabilities of being best; small means
            that the router is unsure.
        rating_value: what a rating of the answer is worth, see ``solicitation``.
    """

    arm: str
    propensity: float
    probabilities: Mapping[str, float]
    quality: float
    spread: float
    rating_value: float = 0.0


class ThompsonSampling:
    """The bandit over LLMs.

    Args:
        arms: one model per LLM name.
        costs: relative cost of each arm.
        exchange_rate: quality that one unit of cost is worth.
        exploration_floor: least probability of any eligible arm.
        exploration: scales the posterior's standard deviations when an arm is drawn. 1 is
            Thompson sampling; less explores less, which suits arms whose qualities differ
            by little and ratings that come for few answers.
    """

    def __init__(
        self,
        arms: Mapping[str, BayesianLinearArm],
        costs: Mapping[str, float],
        exchange_rate: float,
        exploration_floor: float,
        exploration: float = 1.0,
    ) -> None:
        if exploration_floor * len(arms) > 1:
            raise ValueError(
                f"exploration_floor: expected at most 1/{len(arms)} with {len(arms)} arms, "
                f"got {exploration_floor}"
            )
        self.arms = dict(arms)
        self._costs = dict(costs)
        self._exchange_rate = exchange_rate
        self._floor = exploration_floor
        self._exploration = exploration

    def choose(self, x: Context, biases: Mapping[str, float], rng: np.random.Generator) -> Choice:
        """Draw an arm.

        Args:
            x: the context.
            biases: subtracted from each arm's score (load); a missing arm has none.
        """
        names = list(self.arms)
        predictions = [self.arms[name].predict(x) for name in names]
        scores = np.array(
            [
                mean - self._exchange_rate * self._costs[name] - biases.get(name, 0.0)
                for name, (mean, _) in zip(names, predictions, strict=True)
            ]
        )
        if not np.isfinite(scores).all():
            raise ValueError("context: expected finite numbers, got NaN or infinity")
        stds = self._exploration * np.array([std for _, std in predictions])
        best = probability_of_best(scores, stds)
        # Mixing with a uniform draw keeps every arm's propensity above the floor.
        probabilities = (1 - self._floor * len(names)) * best + self._floor
        probabilities /= probabilities.sum()
        # The same draw as rng.choice(p=…), at a tenth of its cost.
        drawn = int(np.searchsorted(np.cumsum(probabilities)[:-1], rng.random(), side="right"))
        return Choice(
            arm=names[drawn],
            propensity=float(probabilities[drawn]),
            probabilities=dict(zip(names, map(float, probabilities), strict=True)),
            quality=min(1.0, max(0.0, predictions[drawn][0])),
            spread=float(np.std(best)),
            rating_value=value_of_rating(
                scores.tolist(),
                [std for _, std in predictions],
                drawn,
                self.arms[names[drawn]].noise,
            ),
        )

    def learn(self, arm: str, x: Context, reward: float) -> None:
        """Take in a rating of an arm's answer; unknown arms raise KeyError."""
        self.arms[arm].learn(x, reward)


def probability_of_best(
    means: Sequence[float] | NDArray[np.float64], stds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P(arm i has the largest value) for independent normal values, FP64 [n].

    Gauss-Hermite quadrature over each arm's value of the product of the others'
    distribution functions.
    """
    means = np.asarray(means, dtype=np.float64)
    stds = np.maximum(np.asarray(stds, dtype=np.float64), 1e-9)
    n = len(means)
    if n == 1:
        return np.ones(1)
    if n == 2:
        first = _normal_cdf((means[0] - means[1]) / math.hypot(stds[0], stds[1]))
        return np.array([first, 1.0 - first])
    result = np.empty(n)
    for i in range(n):
        values = means[i] + stds[i] * _NODES
        below = np.ones_like(values)
        for j in range(n):
            if j != i:
                below *= [_normal_cdf(z) for z in (values - means[j]) / stds[j]]
        result[i] = float(_WEIGHTS @ below)
    total = result.sum()
    # Far-apart narrow arms can fall between the nodes; the largest mean wins then.
    if total > 1e-9:
        return np.asarray(result / total)
    return np.asarray(np.eye(n)[int(np.argmax(means))])


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))
