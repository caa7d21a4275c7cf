"""Bayesian logistic regression, online: what the bandit's arms and the utility model learn with.

An answer's quality is sigma(eta) with the log-odds eta = theta . x, and theta is Gaussian. Each
piece of evidence says something about eta at one context only, so it is taken in by assumed-density
filtering (Opper 1998): eta's exact posterior is computed by quadrature over one number, and the
Gaussian over theta is moved so that eta has its mean and variance. That costs O(d^2). What a piece
of evidence has added is a *site*, as in expectation propagation (Minka 2001), and can be taken out
again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
"""FP64 [d]."""

_LEAST_VARIANCE = 1e-10
_GRID = np.linspace(-7.0, 7.0, 57)  # standard deviations around the mode
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)  # type: ignore[no-untyped-call]
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_ITERATIONS = 16
_LEAST_SHARE_VARIANCE = 0.02  # of what a comparison says, however sure it seems
_SIGNS = np.array([1.0, -1.0])


class Site(NamedTuple):
    """What a piece of evidence says about eta: precision, and precision times mean."""

    precision: float
    shift: float

    def scaled(self, factor: float) -> Site:
        """The same evidence with so many times the weight; -1 takes it out."""
        return Site(self.precision * factor, self.shift * factor)


@dataclass(frozen=True)
class GaussianWeights:
    """The weights' distribution, N(mean, covariance). It is replaced and never changed.

    Attributes:
        mean: FP64 [d].
        covariance: FP64 [d, d].
    """

    mean: Vector
    covariance: NDArray[np.float64]

    @classmethod
    def independent(cls, mean: Vector, deviations: Vector) -> GaussianWeights:
        """Weights with these standard deviations, FP64 [d]."""
        return cls(np.array(mean, np.float64), np.diag(np.square(deviations)))

    def restored(self, state: Mapping[str, Any], what: str) -> GaussianWeights:
        """The weights in a state, which must be as many as here; ValueError if they are not.

        Args:
            state: with the attributes of the weights.
            what: has these weights, for the message.
        """
        mean = np.array(state["mean"], np.float64)
        covariance = np.array(state["covariance"], np.float64)
        if mean.shape != self.mean.shape or covariance.shape != self.covariance.shape:
            raise ValueError(f"{what}: expected {self.mean.shape} weights, got {mean.shape}")
        return GaussianWeights(mean, covariance)

    def at(self, x: Vector) -> tuple[float, float]:
        """Mean and variance of eta at the context x."""
        variance = float(x @ self.covariance @ x)
        return float(self.mean @ x), max(variance, _LEAST_VARIANCE)

    def updated(self, x: Vector, site: Site) -> GaussianWeights:
        """The weights after one more piece of evidence about eta at x, in O(d^2).

        A site that was taken in before can be taken out again, up to a tenth of the precision
        that is left, so that rounding never makes a variance negative.
        """
        direction = self.covariance @ x
        variance = float(x @ direction)
        if variance <= _LEAST_VARIANCE:
            return self  # nothing is unknown there
        mean = float(self.mean @ x)
        precision = max(1.0 / variance + site.precision, 0.1 / variance)
        new_variance = 1.0 / precision
        new_mean = new_variance * (mean / variance + site.shift)
        factor = (variance - new_variance) / variance**2
        covariance = self.covariance - factor * np.outer(direction, direction)
        return GaussianWeights(self.mean + direction * ((new_mean - mean) / variance), covariance)

    def widened(self, prior: GaussianWeights, keep: float) -> GaussianWeights:
        """The weights after forgetting: what was learnt counts ``keep`` times as much.

        The mean stays. A pull to the prior's mean would be evidence that nobody gave, and could
        keep an arm that is seldom drawn from ever being known.
        """
        learnt = np.linalg.inv(self.covariance)
        blended = keep * learnt + (1.0 - keep) * np.linalg.inv(prior.covariance)
        return GaussianWeights(self.mean, np.linalg.inv(blended))

    def transformed(self, prior: GaussianWeights, old_from_new: Vector) -> GaussianWeights:
        """The weights for other features of the same things.

        Args:
            prior: that of the new features; what the old ones cannot express is as uncertain.
            old_from_new: FP64 [d, d], by which the old features follow from the new ones.
        """
        T = old_from_new
        unknown = prior.covariance - T.T @ prior.covariance @ T
        values, vectors = np.linalg.eigh((unknown + unknown.T) / 2.0)
        rest = (vectors * np.maximum(values, 0.0)) @ vectors.T
        return GaussianWeights(T.T @ self.mean, T.T @ self.covariance @ T + rest)


def sigmoid(eta: float) -> float:
    """1 / (1 + exp(-eta)), for any number."""
    return 1.0 / (1.0 + math.exp(-eta)) if eta > -700.0 else 0.0


def logit(p: float) -> float:
    """log(p / (1 - p)), with p kept away from 0 and 1."""
    p = min(0.999, max(0.001, p))
    return math.log(p / (1.0 - p))


def quality_moments(
    means: NDArray[np.float64], stds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of sigma(eta) for eta ~ N(mean, std^2), elementwise."""
    values = sigmoids(means[..., None] + stds[..., None] * _NODES)
    mean = values @ _WEIGHTS
    return mean, np.sqrt(np.maximum(np.square(values) @ _WEIGHTS - np.square(mean), 0.0))


def sigmoids(eta: NDArray[np.float64]) -> NDArray[np.float64]:
    """:func:`sigmoid`, elementwise."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * eta)))


def rating_site(mean: float, variance: float, score: float, weight: float = 1.0) -> Site:
    """What a rating says about eta ~ N(mean, variance).

    Its likelihood is that of a coin, sigma^score * (1 - sigma)^(1 - score), to the power ``weight``
    (quasi-likelihood; Papke and Wooldridge 1996): more than 1 for ratings with less noise than
    right and wrong have.

    Args:
        score: in [0, 1].
    """
    # The log-posterior is concave; the mode lies where its slope changes sign.
    low, high = mean - weight * variance, mean + weight * variance
    for _ in range(50):
        mode = (low + high) / 2.0
        if weight * (score - sigmoid(mode)) > (mode - mean) / variance:
            low = mode
        else:
            high = mode
    p = sigmoid(mode)
    deviation = 1.0 / math.sqrt(1.0 / variance + weight * p * (1.0 - p))
    eta = mode + deviation * _GRID
    # log sigma(eta) = -log(1 + exp(-eta)), and log(1 - sigma(eta)) is eta less.
    log_likelihood = weight * ((score - 1.0) * eta - np.logaddexp(0.0, -eta))
    log_density = log_likelihood - np.square(eta - mean) / (2.0 * variance)
    return _moment_site(mean, variance, eta, np.exp(log_density - log_density.max()))


def comparison_sites(
    better: tuple[float, float], worse: tuple[float, float], share: float
) -> tuple[Site, Site]:
    """What a comparison of two answers says about the log-odds of each.

    An answer wins where it is right and the other one is wrong; in a tie both are right or both are
    wrong. So the share that an answer wins is expected to be 1/2 + (q - q') / 2, as in the win rate
    of the paper. Shares between a tie and a win are both in part.

    Args:
        better, worse: mean and variance of eta of the two answers, which are independent.
        share: what ``better`` wins, in [0, 1]; 0.5 is a tie.
    """
    if share < 0.5:
        second, first = comparison_sites(worse, better, 1.0 - share)
        return first, second
    eta_a, eta_b = (mean + math.sqrt(variance) * _NODES for mean, variance in (better, worse))
    qa, qb = sigmoids(eta_a)[:, None], sigmoids(eta_b)[None, :]
    win, tie = qa * (1.0 - qb), qa * qb + (1.0 - qa) * (1.0 - qb)
    log_likelihood = (2.0 * share - 1.0) * np.log(win + 1e-12)
    log_likelihood = log_likelihood + (2.0 - 2.0 * share) * np.log(tie + 1e-12)
    joint = np.exp(log_likelihood - log_likelihood.max()) * _WEIGHTS[:, None] * _WEIGHTS[None, :]
    sides = ((eta_a, joint.sum(axis=1), better), (eta_b, joint.sum(axis=0), worse))
    first, second = (_moment_site(*prior, eta, mass) for eta, mass, prior in sides)
    return first, second


def joint_comparison_site(
    means: tuple[float, float], covariance: NDArray[np.float64], share: float
) -> tuple[tuple[float, float], Site]:
    """What a comparison of two answers says where one model tells the log-odds of both.

    Its two sides are not independent then, as in :func:`comparison_sites`: most of what is unknown
    may be common to both, and of that a comparison says nothing. It is taken in as one piece of
    evidence about a weighted difference of the two, by an iterated extended Kalman filter (Bell and
    Cathey 1993), whose noise is that of wins, ties and losses.

    Args:
        means, covariance: of eta of the better and of the worse answer, FP64 [2, 2].
        share: what the better one wins, in [0, 1]; 0.5 is a tie.

    Returns:
        The weights of the two log-odds, and the site of their weighted sum.
    """
    mean = np.array(means, dtype=np.float64)
    eta = mean
    for _ in range(_ITERATIONS):
        qualities = sigmoids(eta)
        slopes = 0.5 * qualities * (1.0 - qualities) * _SIGNS
        wins, losses = (float(q) for q in qualities * (1.0 - qualities[::-1]))
        expected = 0.5 + 0.5 * (wins - losses)
        observed = share - expected + float(slopes @ eta)
        spread = covariance @ slopes
        variance = (wins + losses) / 4.0 - (expected - 0.5) ** 2
        variance = max(variance, _LEAST_SHARE_VARIANCE)
        gain = (observed - float(slopes @ mean)) / (variance + float(slopes @ spread))
        eta = (eta + mean + gain * spread) / 2.0  # half a step, so that it does not swing
    return (float(slopes[0]), float(slopes[1])), Site(1.0 / variance, observed / variance)


def _moment_site(mean: float, variance: float, eta: Vector, mass: Vector) -> Site:
    """The site that gives N(mean, variance) the moments of a distribution on a grid.

    Where the evidence leaves two explanations open it would widen the distribution; it is then
    taken to say nothing of the width.
    """
    mass = mass / mass.sum()
    new_mean = float(mass @ eta)
    new_variance = float(mass @ np.square(eta - new_mean))
    new_variance = min(max(new_variance, 1e-4 * variance), variance)
    return Site(1.0 / new_variance - 1.0 / variance, new_mean / new_variance - mean / variance)
