"""LinUCB with disjoint linear models: what is usually taken for a contextual bandit.

Li, Chu, Langford and Schapire: A Contextual-Bandit Approach to Personalized News Article
Recommendation (2010), algorithm 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class LinUCB:
    """One ridge regression for each arm; the arm with the highest upper confidence bound is chosen.

    Args:
        arms: number of arms.
        dimension: length d of a context.
        alpha: width of the confidence bound, in standard deviations.
        penalties: what each arm's cost takes off its score, FP64 [arms].
    """

    def __init__(
        self, arms: int, dimension: int, alpha: float, penalties: NDArray[np.float64]
    ) -> None:
        self._alpha = alpha
        self._penalties = penalties
        self._inverse = np.stack([np.eye(dimension)] * arms)  # A^-1 of each arm
        self._b = np.zeros((arms, dimension))

    def choose(self, x: NDArray[np.float64]) -> int:
        """The arm for a context, FP64 [d]."""
        projected = self._inverse @ x
        means = np.einsum("kd,kd->k", self._b, projected)
        bounds = means + self._alpha * np.sqrt(projected @ x)
        return int(np.argmax(bounds - self._penalties))

    def learn(self, arm: int, x: NDArray[np.float64], reward: float) -> None:
        """Take in the reward of a chosen arm."""
        projected = self._inverse[arm] @ x
        self._inverse[arm] -= np.outer(projected, projected) / (1.0 + x @ projected)
        self._b[arm] += reward * x
