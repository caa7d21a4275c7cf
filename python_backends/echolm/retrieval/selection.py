"""Which of the found examples go into the prompt, and in which order.

Stage 2 of the paper's Example Selector (§4.1): score every candidate's usefulness, keep the
best diverse and within a token budget, drop those that are not worth their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


@dataclass(frozen=True)
class _Row:
    """One request's candidates, by column of the batch."""

    number: int
    ids: list[int]
    slots: list[int]
    utilities: list[float]


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
        # In plain Python from here: a row has few candidates, and each call of numpy on them
        # costs more than they do.
        columns = (batch.ids.tolist(), batch.slots.tolist(), utilities.tolist())
        return [
            self._select_one(candidates[k], batch, _Row(k, *values))
            for k, values in enumerate(zip(*columns, strict=True))
        ]

    def _select_one(
        self, candidates: Sequence[Candidate], batch: FeatureBatch, row: _Row
    ) -> Selection:
        """Choose for one request: pick, drop, leave one out now and then, and put in order."""
        picks = self._pick(batch, row)
        if not picks:
            return Selection()
        settings = self._settings
        worth = [row.utilities[k] for k in picks]
        least, draw = settings.threshold, None
        if settings.adaptive_threshold:
            drawn = self.threshold.draw(self._rng)
            least, draw = GRID[drawn], self.threshold.stands_for(drawn, worth)
        kept = [k for k in picks if row.utilities[k] >= least]
        left_out = NONE
        if len(kept) > 1 and self._rng.random() < settings.leave_one_out:
            left_out = row.ids[kept.pop(int(self._rng.integers(len(kept))))]
            draw = None  # this set is no threshold's
        columns = batch.columns[row.number]
        found = {k: candidates[columns[k]] for k in kept}
        kept = self._ordered(found)
        examples = tuple(
            Selected(c.id, c.request, c.response, c.similarity, row.utilities[k])
            for k, c in ((k, found[k]) for k in kept)
        )
        record = SelectionRecord(
            batch.request[row.number],
            tuple(row.ids[k] for k in kept),
            batch.example[row.number, kept],
            tuple(self._texts.num_tokens(row.slots[k]) for k in kept),
            left_out,
            draw,
        )
        return Selection(examples, record)

    def _pick(self, batch: FeatureBatch, row: _Row) -> list[int]:
        """Columns of the best, by maximal marginal relevance and token budget."""
        settings = self._settings
        diversity = settings.diversity
        ids, utilities = row.ids, row.utilities
        eligible = range(len(batch.columns[row.number]))
        weakest = settings.relative_similarity * max((utilities[k] for k in eligible), default=0.0)
        left = [k for k in eligible if utilities[k] >= weakest]
        scores = {k: (1 - diversity) * utilities[k] for k in left}
        relevance = scores
        redundancy = dict.fromkeys(left, 0.0)
        budget = settings.max_example_tokens
        picks: list[int] = []
        while left and len(picks) < settings.max_examples:
            pick = self._best(ids, left, scores, picks)
            left.remove(pick)
            cost = self._texts.num_tokens(row.slots[pick])
            if cost > budget:
                continue
            budget -= cost
            picks.append(pick)
            if diversity and left and len(picks) < settings.max_examples:
                common = batch.redundancy[row.number, pick].tolist()
                redundancy = {k: max(redundancy[k], common[k]) for k in left}
                scores = {k: relevance[k] - diversity * redundancy[k] for k in left}
        return picks

    def _best(
        self, ids: list[int], columns: list[int], scores: dict[int, float], picks: list[int]
    ) -> int:
        """The column of the highest score, or a warm one of those that are nearly as good."""
        if self._settings.order == "prefix":
            least = max(map(scores.__getitem__, columns)) - self._settings.warm_tolerance
            near = [k for k in columns if scores[k] >= least]
            if len(near) == 1:
                return near[0]
            near.sort(key=lambda k: -scores[k])
            return near[self._warm.warmest([ids[k] for k in picks], [ids[k] for k in near])]
        return max(columns, key=scores.__getitem__)

    def _ordered(self, found: dict[int, Candidate]) -> list[int]:
        """The columns in the order of the prompt."""
        if self._settings.order == "similarity":
            # The most similar stands next to the request.
            return sorted(found, key=lambda k: (found[k].similarity, -k))
        by_id = {c.id: k for k, c in found.items()}
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
