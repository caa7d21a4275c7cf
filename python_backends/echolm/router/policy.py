"""Which LLM answers, and the record of that choice for those who learn from ratings."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import Featurizer
from echolm.bandit.thompson import ThompsonSampling
from echolm.load.bias import LoadBias
from echolm.primitives import AUTO, Choice, Decision, Request, Retrieved, Selected
from echolm.retrieval.record import used_selection

logger = logging.getLogger("echolm")


class Policy:
    """Decides which LLM answers, by the bandit's expectations, cost and load."""

    def __init__(
        self,
        featurizer: Featurizer,
        bandit: ThompsonSampling,
        bias: LoadBias,
        rng: np.random.Generator,
    ) -> None:
        self._featurizer, self._bandit, self._bias, self._rng = featurizer, bandit, bias, rng

    def context(self, request: Request, retrieved: Retrieved) -> NDArray[np.float32]:
        """The bandit's context x of a request, FP32 [d]."""
        return self._featurizer(request.text, retrieved.embedding, retrieved.examples)

    def decide(
        self, requests: Sequence[tuple[Request, Retrieved]]
    ) -> list[tuple[NDArray[np.float32], Choice]]:
        """Draw an LLM for each of several requests: its context x, FP32 [d], and the choice."""
        contexts = self._featurizer.many(
            [request.text for request, _ in requests],
            [retrieved.embedding for _, retrieved in requests],
            [retrieved.examples for _, retrieved in requests],
        )
        choices = self._bandit.choose_many(contexts, self._bias(), self._rng)
        return list(zip(contexts, choices, strict=True))

    def empty_context(self) -> NDArray[np.float32]:
        """The context of a request about which nothing can be told: zeros, FP32 [d]."""
        return np.zeros(self._featurizer.dimension, dtype=np.float32)

    def forced_choice(self, x: NDArray[np.float32], llm: str) -> Choice:
        """The choice of an LLM that the caller, or the failure of another, has determined."""
        mean, _ = self._bandit.arms[llm].predict(x)
        return Choice(llm, 1.0, {llm: 1.0}, min(1.0, max(0.0, mean)))


def fallback_choice(llm: str) -> Choice:
    """The choice of an LLM that was taken without a working router."""
    return Choice(llm, 1.0, {llm: 1.0}, quality=0.0)


def decision_record(
    request_id: str,
    request: Request,
    retrieved: Retrieved,
    x: NDArray[np.float32],
    choice: Choice,
    used: Sequence[Selected],
    revision: str,
) -> Decision:
    """What a rating of an answer teaches about.

    Args:
        x: the bandit's context, FP32 [d].
        choice, revision: of the LLM that gave the answer.
        used: the examples in its prompt.
    """
    ids = tuple(e.id for e in used)
    try:
        selection = used_selection(
            retrieved.selection,
            selected=[e.id for e in retrieved.examples],
            used=ids,
            by_router=request.llm == AUTO,
        )
    except ValueError as error:  # there is an answer, which must not be lost
        logger.error("nothing can be learnt of the examples: %s", error)
        selection = ""
    return Decision(
        request_id,
        request.tenant,
        choice.arm,
        x,
        choice.propensity,
        choice.quality,
        ids,
        selection,
        revision,
    )
