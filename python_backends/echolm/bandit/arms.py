"""One arm of the bandit: Bayesian logistic regression of an LLM's quality (paper, §4.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import HAS_EXAMPLES
from echolm.learning.forgetting import Forgetting
from echolm.learning.logistic import GaussianWeights, Site, quality_moments

Context = NDArray[np.float32] | NDArray[np.float64]
"""The context x, [d]."""


class LogisticArm:
    """One arm: quality = sigma(theta . x), theta ~ N(mean, covariance).

    The posterior is replaced and never changed, so any thread may read it while one learns.

    Args:
        prior: the weights before any evidence.
        half_life_ms: time in which evidence loses half of its weight.
        least_kept: pieces of evidence that an arm keeps however old they are, by their weight.
        revision: the LLM's revision; ratings of another one teach nothing about this one.

    Attributes:
        weights: the posterior.
        evidence: pieces of evidence so far, about answers without and with examples.
    """

    def __init__(
        self, prior: GaussianWeights, half_life_ms: float, least_kept: float, revision: str = ""
    ) -> None:
        self.prior = self.weights = prior
        self.revision = revision
        self.evidence = (0.0, 0.0)
        self._forgetting = Forgetting(half_life_ms, least_kept)

    @property
    def decay(self) -> float:
        """What is left of evidence from the start, see :class:`Forgetting`."""
        return self._forgetting.decay

    def predict(self, x: Context) -> tuple[float, float]:
        """Mean and standard deviation of the log-odds at context x."""
        mean, variance = self.weights.at(x.astype(np.float64))
        return mean, variance**0.5

    def quality(self, x: Context) -> float:
        """The expected quality at context x, in (0, 1)."""
        mean, std = self.predict(x)
        return float(quality_moments(np.array([mean]), np.array([std]))[0][0])

    def learn(self, x: Context, site: Site) -> None:
        """Take in a piece of evidence."""
        self._take(x, site, 1.0)

    def unlearn(self, x: Context, site: Site) -> None:
        """Take out a piece of evidence, which has its present weight."""
        self._take(x, site.scaled(-1.0), -1.0)

    def _take(self, x: Context, site: Site, pieces: float) -> None:
        self.weights = self.weights.updated(x.astype(np.float64), site)
        self._forgetting.kept = max(0.0, self._forgetting.kept + pieces)
        without, with_examples = self.evidence
        if x[HAS_EXAMPLES]:
            with_examples += pieces
        else:
            without += pieces
        self.evidence = (without, with_examples)

    def forget(self, now_ms: int) -> None:
        """Let time pass."""
        keep = self._forgetting.step(now_ms)
        if keep < 1.0:
            self.weights = self.weights.widened(self.prior, keep)

    def transform(self, old_from_new: NDArray[np.float64]) -> None:
        """Go over to other features; see :meth:`GaussianWeights.transformed`."""
        self.weights = self.weights.transformed(self.prior, old_from_new)

    @property
    def configuration(self) -> dict[str, Any]:
        """All values that decide what evidence does to the posterior."""
        prior = {"mean": self.prior.mean, "covariance": self.prior.covariance}
        return {**prior, **self._forgetting.configuration, "revision": self.revision}

    def state(self) -> dict[str, Any]:
        """What was learnt, for :meth:`restore`; later evidence does not change it."""
        evidence = {"evidence": list(self.evidence), **self._forgetting.state()}
        return {**vars(self.weights), **evidence}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if it has another number of weights."""
        weights = self.prior.restored(state, "arm")
        without, with_examples = map(float, state["evidence"])
        self.weights = weights
        self.evidence = (without, with_examples)
        self._forgetting.restore(state)
