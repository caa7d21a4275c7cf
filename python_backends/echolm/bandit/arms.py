"""One arm of the bandit: a Bayesian linear model of an LLM's quality (paper, §4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Context = NDArray[np.float32] | NDArray[np.float64]
"""The context x, [d]."""


@dataclass(frozen=True)
class Posterior:
    """What an arm has learnt. It is never changed, only replaced, so any thread may read it.

    Attributes:
        A: precision matrix, FP64 [d, d].
        b: A @ mean, FP64 [d].
        updates: number of ratings of any arm so far; each is a step of the discount.
    """

    A: NDArray[np.float64]
    b: NDArray[np.float64]
    updates: int


@dataclass(frozen=True)
class SolvedPosterior:
    """A posterior in the form that predictions need.

    Attributes:
        mean: mean of the weights, FP64 [d].
        W: FP64 [d, d] with W.T @ W = A^-1, so that the variance at x is |W @ x|^2.
    """

    posterior: Posterior
    mean: NDArray[np.float64]
    W: NDArray[np.float64]


class BayesianLinearArm:
    """One arm: quality = theta . x + noise, theta ~ N(mean, A^-1).

    A rating costs O(d^2). The O(d^3) solution waits until a prediction needs it, so that one
    solution serves all ratings that came in between. It is a Cholesky factor of A and not a rank-1
    update of A^-1 (Sherman-Morrison): forgetting adds a part of the prior to all of A at each step,
    which is not of rank 1, and without that part A^-1 would drift away from the true inverse.

    Args:
        prior_mean: mean of the weights before any rating, FP64 [d].
        prior_precision: inverse variance of every weight before any rating.
        noise: standard deviation of a rating around the model.
        discount: weight that the past keeps at each rating, in (0, 1]. What is forgotten is
            replaced by the prior, so an arm that drifts is explored again.
        revision: the LLM's revision; ratings of another one teach nothing about this one.
    """

    def __init__(
        self,
        prior_mean: NDArray[np.float64],
        prior_precision: float,
        noise: float,
        discount: float,
        revision: str = "",
    ) -> None:
        self.revision = revision
        self._A0 = prior_precision * np.eye(len(prior_mean))
        self._b0 = self._A0 @ prior_mean
        self.noise = noise
        self._inverse_variance = 1.0 / noise**2
        self._discount = discount
        self.posterior = Posterior(self._A0, self._b0, 0)
        self._solved: SolvedPosterior | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        """Posterior mean of the weights, FP64 [d]."""
        return self.solved().mean

    @property
    def updates(self) -> int:
        """Number of ratings of any arm so far."""
        return self.posterior.updates

    def solved(self) -> SolvedPosterior:
        """The present posterior, solved."""
        solved, posterior = self._solved, self.posterior
        if solved is None or solved.posterior is not posterior:
            W = np.linalg.inv(np.linalg.cholesky(posterior.A))
            self._solved = solved = SolvedPosterior(posterior, W.T @ (W @ posterior.b), W)
        return solved

    def predict(self, x: Context) -> tuple[float, float]:
        """Mean and standard deviation of the expected quality at context x."""
        x = x.astype(np.float64)
        solved = self.solved()
        return float(solved.mean @ x), float(np.linalg.norm(solved.W @ x))

    def learn(self, x: Context, reward: float) -> None:
        """Take in one rating in [0, 1]."""
        x = x.astype(np.float64)
        kept = self._kept()
        A = kept.A + self._inverse_variance * np.outer(x, x)
        b = kept.b + self._inverse_variance * reward * x
        self.posterior = Posterior(A, b, kept.updates)

    def forget(self) -> None:
        """Take the step of the discount that another arm's rating means for this one."""
        self.posterior = self._kept()

    def _kept(self) -> Posterior:
        keep, old = self._discount, self.posterior
        A = keep * old.A + (1 - keep) * self._A0
        b = keep * old.b + (1 - keep) * self._b0
        return Posterior(A, b, old.updates + 1)

    def correct(self, x: Context, old: float, new: float, learned_at: int) -> None:
        """Replace the reward of a rating learnt when ``updates`` became ``learned_at``."""
        p = self.posterior
        weight = self._inverse_variance * self._discount ** (p.updates - learned_at)
        b = p.b + weight * (new - old) * x.astype(np.float64)
        self.posterior = Posterior(p.A, b, p.updates)

    @property
    def configuration(self) -> dict[str, Any]:
        """All values that decide what a rating does to the posterior."""
        prior = {"A0": self._A0, "b0": self._b0, "revision": self.revision}
        return {**prior, "inverse_variance": self._inverse_variance, "discount": self._discount}

    def state(self) -> dict[str, Any]:
        """The posterior, for :meth:`restore`; later ratings do not change what is returned."""
        return dict(vars(self.posterior))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if it has another number of weights."""
        A, b, updates = state["A"], state["b"], state["updates"]
        if A.shape != self._A0.shape or b.shape != self._b0.shape:
            raise ValueError(f"posterior: expected {len(self._b0)} weights, got {b.shape[0]}")
        self.posterior = Posterior(A, b, int(updates))
