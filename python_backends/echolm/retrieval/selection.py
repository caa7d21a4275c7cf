"""Which of the found examples go into the prompt, and in which order.

Stage 2 of the paper's Example Selector (§4.1): score every candidate's usefulness, keep the
best diverse and within a token budget, drop those that are not worth their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.contracts import MAX_BATCH_SIZE
from echolm.generation.prompt import TokenCounter
from echolm.learning.learner import Learnable
from echolm.retrieval.features import ExampleTexts, FeatureBatch, featurize
from echolm.retrieval.prefix import WarmPrefixes
from echolm.retrieval.record import NONE, SelectionRecord, ThresholdDraw
from echolm.retrieval.store import Candidate
from echolm.retrieval.threshold import GRID, AdaptiveThreshold
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility, UtilityModel
from echolm.settings import RetrievalSettings, Settings

_TEXTS = 65_536  # examples whose features are kept


class Selected(NamedTuple):
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
        coverage: probability that any of the good examples that were found, chosen or not, would
            do for the request, were each of use by itself (noisy OR of their utilities).
    """

    examples: tuple[Selected, ...] = ()
    record: SelectionRecord | None = None
    coverage: float = 0.0


class _Chosen(NamedTuple):
    """The columns of a row's examples in the order of the prompt; the rest as in the record."""

    columns: list[int]
    left_out: int
    draw: ThresholdDraw | None


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
        best = np.where(batch.valid, utilities, 0.0).max(axis=1, keepdims=True)
        strong = batch.valid & (utilities >= best * self._settings.relative_similarity)
        coverages = 1.0 - np.where(strong, 1.0 - np.minimum(utilities, 1.0), 1.0).prod(axis=1)
        picked = self._pick(batch, utilities, strong)
        chosen = [
            self._choose(batch.candidates[k], worth, picks)
            for k, (worth, picks) in enumerate(zip(utilities.tolist(), picked, strict=True))
        ]
        return self._conclude(batch, utilities, coverages, chosen)

    def _pick(
        self, batch: FeatureBatch, utilities: NDArray[np.float32], strong: NDArray[np.bool_]
    ) -> list[list[int]]:
        """Columns of the best for each row, by maximal marginal relevance and token budget."""
        settings = self._settings
        b, n = utilities.shape
        relevance = np.where(strong, (1 - settings.diversity) * utilities, -np.inf)
        redundancy = np.zeros((b, n), dtype=np.float32)
        ids, slots = batch.ids.tolist(), batch.slots.tolist()
        budgets = [settings.max_example_tokens] * b
        picked: list[list[int]] = [[] for _ in range(b)]
        open_rows = np.flatnonzero(strong.any(axis=1)).tolist() if settings.max_examples else []
        while open_rows:
            # One more for every row at a time; what exceeds a budget is out of the question.
            scores = relevance - settings.diversity * redundancy
            near = self._near_best(scores)
            columns = np.zeros(b, dtype=np.intp)
            fresh = []
            for row in open_rows:
                options = near[row]
                column = options[0]
                if len(options) > 1:
                    own = ids[row]
                    warm = [own[k] for k in picked[row]], [own[k] for k in options]
                    column = options[self._warm.warmest(*warm)]
                relevance[row, column] = -np.inf
                cost = self._texts.num_tokens(slots[row][column])
                if cost <= budgets[row]:
                    budgets[row] -= cost
                    picked[row].append(column)
                    columns[row] = column
                    fresh.append(row)
            left = (relevance > -np.inf).any(axis=1).tolist()
            open_rows = [k for k in open_rows if left[k] and len(picked[k]) < settings.max_examples]
            if open_rows and settings.diversity:
                common = batch.redundancy(columns)[fresh]
                redundancy[fresh] = np.maximum(redundancy[fresh], common)
        return picked

    def _near_best(self, scores: NDArray[np.float32]) -> list[list[int]]:
        """For each row the column of the highest score, and those that may stand in for it.

        The best come first. Rows without a score have none.
        """
        near: list[list[int]] = [[] for _ in scores]
        least = scores.max(axis=1, keepdims=True)
        if self._settings.order == "prefix":
            least = least - self._settings.warm_tolerance
        rows, columns = np.nonzero((scores >= least) & (scores > -np.inf))
        # Each row's by falling score, equal ones as they were found.
        order = np.lexsort((columns, -scores[rows, columns], rows))
        for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            near[row].append(column)
        return near if self._settings.order == "prefix" else [one[:1] for one in near]

    def _choose(
        self, candidates: Sequence[Candidate], utilities: list[float], picks: list[int]
    ) -> _Chosen | None:
        """Drop what is under the threshold, leave one out now and then, and put in order."""
        if not picks:
            return None
        settings = self._settings
        worth = {k: utilities[k] for k in picks}
        least, draw = settings.threshold, None
        if settings.adaptive_threshold:
            drawn = self.threshold.draw(self._rng)
            least, draw = GRID[drawn], self.threshold.stands_for(drawn, list(worth.values()))
        found = {k: candidates[k] for k, u in worth.items() if u >= least}
        left_out = NONE
        if len(found) > 1 and self._rng.random() < settings.leave_one_out:
            left_out = found.pop(list(found)[int(self._rng.integers(len(found)))]).id
            draw = None  # this set is no threshold's
        return _Chosen(self._ordered(found), left_out, draw)

    def _conclude(
        self,
        batch: FeatureBatch,
        utilities: NDArray[np.float32],
        coverages: NDArray[np.float32],
        chosen: Sequence[_Chosen | None],
    ) -> list[Selection]:
        """All selections, from arrays that are read once for the whole batch."""
        rows = [row for row, one in enumerate(chosen) if one for _ in one.columns]
        columns = [column for one in chosen if one for column in one.columns]
        features = batch.example[rows, columns]
        worth = utilities[rows, columns].tolist()
        tokens = [self._texts.num_tokens(slot) for slot in batch.slots[rows, columns].tolist()]
        selections = []
        end = 0
        for row, (one, coverage) in enumerate(zip(chosen, coverages.tolist(), strict=True)):
            if one is None:
                selections.append(Selection())
                continue
            candidates = batch.candidates[row]
            start, end = end, end + len(one.columns)
            found = [candidates[column] for column in one.columns]
            record = SelectionRecord(
                batch.request[row],
                tuple([c.id for c in found]),
                features[start:end],
                tuple(tokens[start:end]),
                one.left_out,
                one.draw,
            )
            examples = [
                Selected(c.id, c.request, c.response, c.similarity, u)
                for c, u in zip(found, worth[start:end], strict=True)
            ]
            selections.append(Selection(tuple(examples), record, coverage))
        return selections

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
