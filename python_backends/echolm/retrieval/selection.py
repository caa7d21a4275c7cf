"""Which of the found examples go into the prompt, and in which order.

Stage 2 of the paper's Example Selector (§4.1): score every candidate's usefulness, keep the
best diverse and within a token budget, drop those that are not worth their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echolm.contracts import MAX_BATCH_SIZE
from echolm.generation.prompt import TokenCounter
from echolm.learning.learner import Learnable
from echolm.retrieval.features import ExampleTexts, FeatureBatch, featurize
from echolm.retrieval.prefix import WarmPrefixes
from echolm.retrieval.record import NONE, SelectionRecord
from echolm.retrieval.store import Candidate
from echolm.retrieval.threshold import GRID, AdaptiveThreshold
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility, UtilityModel
from echolm.settings import RetrievalSettings, Settings

_TEXTS = 16_384  # examples whose features are kept


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


@dataclass(frozen=True)
class Selection:
    """What was chosen for a request.

    Attributes:
        examples: in prompt order.
        record: what a rating needs to know of it; None if there was nothing to choose from.
    """

    examples: tuple[Selected, ...] = ()
    record: SelectionRecord | None = None


class ExampleSelector:
    """Chooses examples by utility, redundancy, token budget and threshold.

    Args:
        settings: limits, and which parts are in use.
        utility: scores the candidates.
        threshold: which utility is enough.
        tokens: counts tokens of the LLM that will read the examples.
        rng: draws which example is left out and which threshold is tried.
    """

    def __init__(
        self,
        settings: RetrievalSettings,
        utility: UtilityModel,
        threshold: AdaptiveThreshold,
        tokens: TokenCounter,
        rng: np.random.Generator,
    ) -> None:
        self._settings = settings
        self.utility = utility
        self.threshold = threshold
        self._texts = ExampleTexts(tokens, max(_TEXTS, MAX_BATCH_SIZE * settings.top_n))
        self._warm = WarmPrefixes()
        self._rng = rng

    @property
    def least_utility(self) -> float:
        """The threshold now."""
        if self._settings.adaptive_threshold:
            return self.threshold.value
        return self._settings.threshold

    @property
    def learnables(self) -> list[Learnable]:
        """Those parts that learn from ratings."""
        learning: list[Learnable] = []
        if isinstance(self.utility, LearnedUtility):
            learning.append(self.utility)
        if self._settings.adaptive_threshold:
            learning.append(self.threshold)
        return learning

    def select(
        self, requests: Sequence[str], candidates: Sequence[Sequence[Candidate]]
    ) -> list[Selection]:
        """Choose 0 to ``max_examples`` for each request of a batch.

        Args:
            candidates: for each request what the store found, most similar first.
        """
        batch = featurize(requests, candidates, self._texts, self._settings.min_similarity)
        if not batch.valid.any():
            return [Selection() for _ in requests]
        utilities = self.utility.score(batch)
        picked = self._pick(batch, utilities)
        return [
            self._conclude(row, candidates[row], batch, utilities[row], picks)
            for row, picks in enumerate(picked)
        ]

    def _pick(self, batch: FeatureBatch, utilities: NDArray[np.float32]) -> list[list[int]]:
        """Columns of the best for each row, by maximal marginal relevance and token budget."""
        best = np.where(batch.valid, utilities, 0.0).max(axis=1, keepdims=True)
        strong = batch.valid & (utilities >= best * self._settings.relative_similarity)
        return [
            self._pick_one(batch, row, np.flatnonzero(strong[row]).tolist(), utilities[row])
            for row in range(len(utilities))
        ]

    def _pick_one(
        self,
        batch: FeatureBatch,
        row: int,
        columns: list[int],
        utilities: NDArray[np.float32],
    ) -> list[int]:
        # In plain Python: a pool is a few candidates, and a call of numpy costs more than those.
        settings = self._settings
        relevance = [(1 - settings.diversity) * u for u in utilities[columns].tolist()]
        relevant = dict(zip(columns, relevance, strict=True))
        redundant = dict.fromkeys(columns, 0.0)
        slots = batch.slots[row]
        budget = settings.max_example_tokens
        picks: list[int] = []
        while relevant and len(picks) < settings.max_examples:
            scores = {k: r - settings.diversity * redundant[k] for k, r in relevant.items()}
            pick = self._best(batch.ids[row], scores, picks)
            del relevant[pick]
            cost = self._texts.num_tokens(int(slots[pick]))
            if cost > budget:
                continue
            budget -= cost
            picks.append(pick)
            if len(picks) < settings.max_examples:
                common = batch.redundancy[row, pick].tolist()
                redundant = {k: max(redundant[k], common[k]) for k in relevant}
        return picks

    def _best(self, ids: NDArray[np.int64], scores: dict[int, float], picks: list[int]) -> int:
        """The column of the highest score, or a warm one of those that are nearly as good."""
        if self._settings.order == "prefix":
            least = max(scores.values()) - self._settings.warm_tolerance
            near = sorted((k for k, s in scores.items() if s >= least), key=lambda k: -scores[k])
            if len(near) > 1:
                return near[self._warm.warmest(ids[picks].tolist(), ids[near].tolist())]
        return max(scores, key=scores.__getitem__)

    def _conclude(
        self,
        row: int,
        candidates: Sequence[Candidate],
        batch: FeatureBatch,
        utilities: NDArray[np.float32],
        picks: Sequence[int],
    ) -> Selection:
        """Drop what is under the threshold, leave one out now and then, and put in order."""
        if not picks:
            return Selection()
        settings = self._settings
        worth = {k: float(utilities[k]) for k in picks}
        least, draw = settings.threshold, None
        if settings.adaptive_threshold:
            drawn = self.threshold.draw(self._rng)
            least, draw = GRID[drawn], self.threshold.stands_for(drawn, list(worth.values()))
        kept = [k for k in picks if worth[k] >= least]
        left_out = NONE
        if len(kept) > 1 and self._rng.random() < settings.leave_one_out:
            left_out = int(batch.ids[row, kept.pop(int(self._rng.integers(len(kept))))])
            draw = None  # this set is no threshold's
        kept = self._ordered(batch, row, kept)
        examples = []
        for k in kept:
            found = candidates[batch.columns[row][k]]
            examples.append(
                Selected(found.id, found.request, found.response, found.similarity, worth[k])
            )
        record = SelectionRecord(
            batch.request[row],
            tuple(e.id for e in examples),
            batch.example[row, kept],
            tuple(self._texts.num_tokens(int(batch.slots[row, k])) for k in kept),
            left_out,
            draw,
        )
        return Selection(tuple(examples), record)

    def _ordered(self, batch: FeatureBatch, row: int, kept: list[int]) -> list[int]:
        if self._settings.order == "similarity":
            # The most similar stands next to the request.
            return sorted(kept, key=lambda k: (float(batch.similarity[row, k]), k))
        by_id = {int(batch.ids[row, k]): k for k in kept}
        order = self._warm.arrange(list(by_id))
        self._warm.use(order)
        return [by_id[i] for i in order]


def build_selector(
    settings: Settings, tokens: TokenCounter, rng: np.random.Generator
) -> ExampleSelector:
    """The selector as configured."""
    retrieval = settings.retrieval
    return ExampleSelector(
        retrieval,
        LearnedUtility(retrieval.utility_discount)
        if retrieval.utility == "learned"
        else SimilarityUtility(),
        AdaptiveThreshold(
            retrieval.threshold,
            retrieval.threshold_exploration,
            {llm.name: settings.routing.exchange_rate * llm.cost for llm in settings.llms},
            retrieval.token_price,
        ),
        tokens,
        rng,
    )
