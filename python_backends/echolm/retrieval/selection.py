"""Which of the found examples go into the prompt, and in which order.

Stage 2 of the paper's Example Selector (§4.1): score every candidate's usefulness, drop
the weak, keep the rest diverse and within a token budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from echolm.generation.prompt import TokenCounter
from echolm.retrieval.store import Candidate
from echolm.settings import RetrievalSettings

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Selected:
    """One example that goes into the prompt.

    Attributes:
        utility: its estimated usefulness for this request, 0..1.
    """

    id: int
    request: str
    response: str
    similarity: float
    utility: float


class UtilityModel(Protocol):
    """Scores how much an example helps the small LLM with a request."""

    def score(
        self, requests: Sequence[str], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float32]]:
        """Utilities FP32 [number of candidates] in 0..1 for each request of a batch."""
        ...


class SimilarityUtility:
    """The cold-start utility: how similar the requests are, times the response's quality."""

    def score(
        self, requests: Sequence[str], candidates: Sequence[Sequence[Candidate]]
    ) -> list[NDArray[np.float32]]:
        return [
            np.asarray([max(0.0, c.similarity) * c.quality for c in row], dtype=np.float32)
            for row in candidates
        ]


class ExampleSelector:
    """Chooses examples by utility, redundancy and token budget.

    Args:
        settings: thresholds and budgets.
        utility: scores the candidates.
        tokens: counts tokens of the LLM that will read the examples.
    """

    def __init__(
        self, settings: RetrievalSettings, utility: UtilityModel, tokens: TokenCounter
    ) -> None:
        self._settings = settings
        self._utility = utility
        self._tokens = tokens

    def select(
        self, requests: Sequence[str], candidates: Sequence[Sequence[Candidate]]
    ) -> list[list[Selected]]:
        """Choose 0 to ``max_examples`` for each request of a batch, in prompt order.

        Args:
            candidates: for each request what the store found, most similar first.
        """
        utilities = self._utility.score(requests, candidates)
        return [
            self._select_one(row, scores) for row, scores in zip(candidates, utilities, strict=True)
        ]

    def _select_one(
        self, candidates: Sequence[Candidate], scores: NDArray[np.float32]
    ) -> list[Selected]:
        settings = self._settings
        pool = [
            (candidate, float(score))
            for candidate, score in zip(candidates, scores, strict=True)
            if candidate.similarity >= settings.min_similarity
        ]
        if not pool:
            return []
        weakest = max(score for _, score in pool) * settings.relative_similarity
        pool = [(candidate, score) for candidate, score in pool if score >= weakest]

        redundancy = [0.0] * len(pool)
        remaining = list(range(len(pool)))
        budget = settings.max_example_tokens
        chosen: list[Selected] = []
        while remaining and len(chosen) < settings.max_examples:
            # Maximal marginal relevance: useful, and not what is already there.
            best = max(
                remaining,
                key=lambda i: (
                    (1 - settings.diversity) * pool[i][1] - settings.diversity * redundancy[i],
                    -i,
                ),
            )
            remaining.remove(best)
            candidate, score = pool[best]
            cost = self._tokens.count(candidate.request) + self._tokens.count(candidate.response)
            if cost > budget:
                continue
            budget -= cost
            chosen.append(
                Selected(
                    candidate.id, candidate.request, candidate.response, candidate.similarity, score
                )
            )
            if len(chosen) == settings.max_examples:
                break
            words = _words(candidate)
            for i in remaining:
                redundancy[i] = max(redundancy[i], _jaccard(_words(pool[i][0]), words))
        # A canonical order: requests that share examples share the prompt's first tokens,
        # which the engine then takes from its prefix cache.
        return sorted(chosen, key=lambda s: s.id)


def _words(candidate: Candidate) -> frozenset[str]:
    return frozenset(_WORD.findall(f"{candidate.request} {candidate.response}".lower()))


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    union = len(a | b)
    return len(a & b) / union if union else 1.0
