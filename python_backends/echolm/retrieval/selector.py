"""Which of the found examples go into the prompt, and in which order.

This is stage 2 of the paper's Example Selector (§4.1): score every candidate's usefulness, keep
the best ones, diverse and within a token budget, and drop those that are not worth their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.contracts import MAX_BATCH_SIZE
from echolm.learning.learner import Learnable
from echolm.learning.request_sample import NewestStatistics
from echolm.llm.tokens import TokenCounter
from echolm.primitives import Candidate, Selected
from echolm.retrieval.diversity import MarginalRelevance, ScoredSet
from echolm.retrieval.features import ExampleTexts, FeatureBatch, featurize
from echolm.retrieval.lookalikes import doubted, nothing_unseen
from echolm.retrieval.prefix import Prefix, WarmPrefixes
from echolm.retrieval.prefix_index import SharedPrefixIndex
from echolm.retrieval.record import NONE, SelectionRecord, ThresholdDraw
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.threshold import GRID, AdaptiveThreshold
from echolm.retrieval.utility import LearnedUtility, UtilityModel
from echolm.settings import RetrievalSettings

_TEXTS = 65_536  # examples whose texts' features are kept, in 80 MB if there are so many
_ROUNDING = 1e-6  # by which sums of the same numbers in another order differ


@dataclass(frozen=True)
class Selection:
    """What was selected for a request. It leaves the retriever as a ``primitives.Retrieved``.

    Attributes:
        examples: the selected examples in the order of the prompt.
        record: None if there was nothing to select from.
        help_probability: probability that any of the good examples that were found, selected or
            not, would do for the request: noisy OR of their utilities; without any that of the
            best candidate.
    """

    examples: tuple[Selected, ...] = ()
    record: SelectionRecord | None = None
    help_probability: float = 0.0


class _Chosen(NamedTuple):
    """Columns of a row's examples in the order of the prompt; the others: see SelectionRecord."""

    columns: list[int]
    dropped: int
    draw: ThresholdDraw | None


class ExampleSelector:
    """Selects examples by utility, redundancy, token budget and threshold.

    Args:
        tokens: counts tokens of the LLM that will read the examples.
        rng: draws which example is dropped (leave-one-out) and which threshold is tried.
        newest: the statistics of requests that similarities are relative to.
        prefix_index: knows what other processes put into prompts for the same engines.
        unseen: the share of a transcript that the embedding model does not get to see.
    """

    def __init__(
        self,
        settings: RetrievalSettings,
        utility: UtilityModel,
        threshold: AdaptiveThreshold,
        tokens: TokenCounter,
        rng: np.random.Generator,
        newest: NewestStatistics,
        prefix_index: SharedPrefixIndex | None = None,
        unseen: Callable[[str], float] = nothing_unseen,
    ) -> None:
        self._settings = settings
        self.newest_statistics = newest
        self.utility = utility
        self.threshold = threshold
        self._texts = ExampleTexts(tokens, max(_TEXTS, MAX_BATCH_SIZE * settings.top_n))
        self._warm = WarmPrefixes(prefix_index)
        self._rng = rng
        self._unseen = unseen

    @property
    def least_utility(self) -> float:
        """The threshold now."""
        if self._settings.adaptive_utility_threshold:
            return self.threshold.value
        return self._settings.utility_threshold

    @property
    def learnables(self) -> list[Learnable]:
        """The parts that learn from the log."""
        learning: list[Learnable] = [self.newest_statistics]
        if isinstance(self.utility, LearnedUtility):
            learning.append(self.utility)
        if self._settings.adaptive_utility_threshold:
            learning.append(self.threshold)
        return learning

    def select(
        self, requests: Sequence[str], candidates: Sequence[Sequence[Candidate]]
    ) -> list[Selection]:
        """Select 0 to ``max_examples`` examples for each request of a batch.

        Args:
            requests: their transcripts.
            candidates: for each request what the store found, most similar first.
        """
        scale = SimilarityScale.of(self.newest_statistics.statistics)
        least = self._settings.min_similarity
        least = scale.floor if least is None else least
        found = [
            doubted(request, row, scale.floor, self._unseen)
            for request, row in zip(requests, candidates, strict=True)
        ]
        batch = featurize(requests, found, self._texts, scale, least)
        if not batch.valid.any():
            return [Selection() for _ in requests]
        utilities = self.utility.score(batch)
        best = np.where(batch.valid, utilities, 0.0).max(axis=1, keepdims=True)
        strong = batch.valid & (utilities >= best * self._settings.relative_similarity)
        # Many examples that hardly help do not make one that does.
        good = strong & (utilities >= self.least_utility)
        fails = np.where(good, 1.0 - np.minimum(utilities, 1.0), 1.0)
        help_probabilities = np.maximum(1.0 - fails.prod(axis=1), best[:, 0])
        self._warm.poll()
        picked = self._pick(batch, utilities, strong)
        chosen = [
            self._choose(batch.candidates[k], worth, picks)
            for k, (worth, picks) in enumerate(zip(utilities.tolist(), picked, strict=True))
        ]
        self._warm.publish()
        return self._conclude(batch, utilities, help_probabilities.tolist(), chosen)

    def _pick(
        self, batch: FeatureBatch, utilities: NDArray[np.float32], strong: NDArray[np.bool_]
    ) -> list[list[int]]:
        """For each row the columns of the best set, or of a warm set that is nearly as good."""
        settings = self._settings
        worths = (1 - settings.diversity) * utilities
        ranked = np.argsort(-worths, axis=1, kind="stable").tolist()
        columns = zip(worths.tolist(), strong.tolist(), ranked, strict=True)
        picked = []
        for row, (worth, may, order) in enumerate(columns):
            sets = MarginalRelevance(
                {k: worth[k] for k in order if may[k]},
                settings.diversity * batch.redundancy(row) if settings.diversity else None,
                self._tokens_of(batch.slots[row].tolist(), batch.candidates[row]),
                settings.max_examples,
                settings.max_example_tokens,
            )
            best = sets.completed()
            warm = settings.order == "prefix" and best.columns
            ids = batch.ids[row].tolist()
            picked.append(self._warmest(sets, best, ids) if warm else best.columns)
        return picked

    def _tokens_of(
        self, slots: Sequence[int], candidates: Sequence[Candidate]
    ) -> Callable[[int], int]:
        return lambda column: self._texts.num_tokens(slots[column], candidates[column])

    def _warmest(self, sets: MarginalRelevance, best: ScoredSet, ids: Sequence[int]) -> list[int]:
        """Columns of the set that shares most with earlier prompts, if it is nearly as good."""
        settings, worth = self._settings, sets.worth
        given_up = len(best.columns) * settings.warm_tolerance + _ROUNDING
        threshold = (1 - settings.diversity) * self.least_utility

        def above(columns: Sequence[int]) -> int:
            return sum(worth[k] >= threshold for k in columns)

        # Candidates of less worth can hardly be in a set that is good enough.
        columns = {ids[k]: k for k in worth if worth[k] >= best.least - given_up}
        kept = above(best.columns)
        # The columns of the set that begins with each start.
        sets_by_start: dict[Prefix, list[int]] = {(): best.columns}

        def nearly_as_good(start: Prefix) -> bool:
            chosen = [columns[i] for i in start]
            # The best set in another order has another value, and is good enough in any.
            if set(chosen) <= set(best.columns):
                sets_by_start[start] = best.columns
                return True
            other = sets.completed(chosen)
            sets_by_start[start] = other.columns
            return (
                other.columns[: len(chosen)] == chosen
                and len(other.columns) >= len(best.columns)
                and other.value >= best.value - given_up
                # Otherwise the threshold would drop what stands in for a better example.
                and above(other.columns) >= kept
            )

        return sets_by_start[self._warm.longest(list(columns), nearly_as_good)]

    def _choose(
        self, candidates: Sequence[Candidate], utilities: list[float], picks: list[int]
    ) -> _Chosen | None:
        """Drop what is under the threshold, now and then one more at random, and put in order."""
        if not picks:
            return None
        settings = self._settings
        worth = {k: utilities[k] for k in picks}
        least, draw = settings.utility_threshold, None
        if settings.adaptive_utility_threshold:
            drawn = self.threshold.draw(self._rng)
            least, draw = GRID[drawn], self.threshold.stands_for(drawn, list(worth.values()))
        kept = {k: candidates[k] for k, u in worth.items() if u >= least}
        dropped = NONE
        if len(kept) > 1 and self._rng.random() < settings.leave_one_out:
            dropped = kept.pop(list(kept)[int(self._rng.integers(len(kept)))]).id
            draw = None  # no threshold leads to this set
        return _Chosen(self._ordered(kept), dropped, draw)

    def _conclude(
        self,
        batch: FeatureBatch,
        utilities: NDArray[np.float32],
        help_probabilities: list[float],
        chosen: Sequence[_Chosen | None],
    ) -> list[Selection]:
        """The selections of all rows; arrays are read once for the whole batch."""
        rows = [row for row, choice in enumerate(chosen) if choice for _ in choice.columns]
        columns = [column for choice in chosen if choice for column in choice.columns]
        features = batch.example[rows, columns]
        worth = utilities[rows, columns].tolist()
        agreements = batch.agreement[rows, columns].tolist()
        found = [batch.candidates[row][column] for row, column in zip(rows, columns, strict=True)]
        tokens = list(map(self._texts.num_tokens, batch.slots[rows, columns].tolist(), found))
        selections = []
        end = 0
        for row, choice in enumerate(chosen):
            if choice is None:
                selections.append(Selection())
                continue
            here, end = slice(end, end + len(choice.columns)), end + len(choice.columns)
            selected = found[here]
            ids, num_tokens = tuple([c.id for c in selected]), tuple(tokens[here])
            record = SelectionRecord(
                batch.request[row], ids, features[here], num_tokens, choice.dropped, choice.draw
            )
            examples = [
                Selected(c.id, c.request, c.response, c.similarity, u, a)
                for c, u, a in zip(selected, worth[here], agreements[here], strict=True)
            ]
            selections.append(Selection(tuple(examples), record, help_probabilities[row]))
        return selections

    def _ordered(self, kept: dict[int, Candidate]) -> list[int]:
        """The columns in the order of the prompt."""
        if self._settings.order == "similarity":
            # The most similar stands next to the request.
            return sorted(kept, key=lambda k: (kept[k].similarity, -k))
        by_id = {c.id: k for k, c in kept.items()}
        order = self._warm.arrange(list(by_id))
        self._warm.use(order)
        return [by_id[i] for i in order]
