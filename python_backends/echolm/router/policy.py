"""Which LLM answers: bandit, cost and load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import Featurizer
from echolm.bandit.thompson import ThompsonSampling
from echolm.load.bias import LoadBias
from echolm.primitives import (
    Choice,
    Request,
    Retrieved,
)


class Policy:
    """Decides which LLM answers: bandit, cost and load."""

    def __init__(
        self,
        featurizer: Featurizer,
        bandit: ThompsonSampling,
        bias: LoadBias,
        rng: np.random.Generator,
    ) -> None:
        self._featurizer = featurizer
        self._bandit = bandit
        self._bias = bias
        self._rng = rng

    def context(self, request: Request, retrieved: Retrieved) -> NDArray[np.float32]:
        """The bandit's context x of a request."""
        return self._featurizer(request.text, retrieved.embedding, retrieved.examples)

    def decide(
        self, asked: Sequence[tuple[Request, Retrieved]]
    ) -> list[tuple[NDArray[np.float32], Choice]]:
        """Draw the LLM for each of several requests; with the contexts."""
        contexts = self._featurizer.many(
            [request.text for request, _ in asked],
            [retrieved.embedding for _, retrieved in asked],
            [retrieved.examples for _, retrieved in asked],
        )
        choices = self._bandit.choose_many(contexts, self._bias(), self._rng)
        return list(zip(contexts, choices, strict=True))

    def unknown(self) -> NDArray[np.float32]:
        """The context of a request about which nothing can be told."""
        return np.zeros(self._featurizer.dimension, dtype=np.float32)

    def forced(self, x: NDArray[np.float32], llm: str) -> Choice:
        """The decision record of a request whose LLM the caller, or a failure, has chosen."""
        mean, _ = self._bandit.arms[llm].predict(x)
        return Choice(llm, 1.0, {llm: 1.0}, min(1.0, max(0.0, mean)))
