"""Which LLM answers, and the record of that choice for those who learn from ratings."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import DIMENSION, Featurizer
from echolm.bandit.thompson import ThompsonSampling
from echolm.load.bias import LoadBias
from echolm.primitives import AUTO, Choice, Decision, Request, Retrieved, Selected
from echolm.retrieval.record import used_selection
from echolm.router.conversations import WarmConversations
from echolm.router.warm_up import WarmUp

logger = logging.getLogger("echolm")


class Policy:
    """Decides which LLM answers, by the bandit's expectations, cost and load.

    Args:
        warm_up: which LLMs may be drawn; None: all.
        conversations: which LLM has a conversation in its prefix cache; None: none has.
    """

    def __init__(
        self,
        featurizer: Featurizer,
        bandit: ThompsonSampling,
        bias: LoadBias,
        rng: np.random.Generator,
        warm_up: WarmUp | None = None,
        conversations: WarmConversations | None = None,
    ) -> None:
        self._featurizer, self._bandit, self._bias, self._rng = featurizer, bandit, bias, rng
        self._warm_up = warm_up
        self._conversations = conversations or WarmConversations(0.0)

    def decide(
        self,
        requests: Sequence[tuple[Request, Retrieved]],
        able: Sequence[Collection[str] | None] = (),
    ) -> list[tuple[NDArray[np.float32], Choice]]:
        """Draw an LLM for each of several requests: its context x, FP32 [d], and the choice.

        Args:
            able: names of the LLMs, one or more, that can take each request; None: all. Where the
                warm-up keeps all of these away, one of them is drawn nevertheless.
        """
        statistics = self._featurizer.statistics  # which a learning thread may replace
        contexts = self._featurizer.many(
            [request.transcript for request, _ in requests],
            [retrieved.embedding for _, retrieved in requests],
            [retrieved.examples for _, retrieved in requests],
            statistics,
        )
        eligible = None if self._warm_up is None else self._warm_up.eligible(contexts)
        if any(names is not None for names in able):
            eligible = self._of_these(able, eligible)
        bonuses = self._conversations.bonuses([r for r, _ in requests], list(self._bandit.arms))
        weights = [r.cost_weight for r, _ in requests]
        choices = self._bandit.choose_many(
            contexts, self._bias(), self._rng, eligible, bonuses, weights
        )
        version = statistics.version
        return [(x, replace(c, statistics=version)) for x, c in zip(contexts, choices, strict=True)]

    def _of_these(
        self, able: Sequence[Collection[str] | None], eligible: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Which arms may be drawn, BOOL [n, arms]: of the eligible ones those that are able."""
        arms = self._bandit.arms
        mask = np.array([[names is None or arm in names for arm in arms] for names in able])
        if eligible is None:
            return mask
        both = mask & eligible
        return np.where(both.any(axis=1, keepdims=True), both, mask)

    def empty_context(self) -> NDArray[np.float32]:
        """The context of a request about which nothing can be told: zeros, FP32 [d]."""
        return np.zeros(DIMENSION, dtype=np.float32)

    def force(self, request: Request, retrieved: Retrieved) -> tuple[NDArray[np.float32], Choice]:
        """The context of a request whose caller names the LLM, FP32 [d], and the choice."""
        statistics = self._featurizer.statistics
        row = [request.transcript], [retrieved.embedding], [retrieved.examples]
        x = self._featurizer.many(*row, statistics)[0]
        return x, self.forced_choice(x, request.llm, statistics.version)

    def forced_choice(self, x: NDArray[np.float32], llm: str, statistics: int) -> Choice:
        """The choice of an LLM that the caller, or the failure of another, has determined.

        Args:
            x, statistics: the context, and the version of the statistics by which it was made.
        """
        quality = self._bandit.arms[llm].quality(x)
        return Choice(llm, 1.0, {llm: 1.0}, quality, statistics=statistics)


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
            # The number of examples is learnt for the usual price of the LLMs, not another one.
            by_router=request.llm == AUTO and request.cost_weight is None,
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
        choice.statistics,
    )
