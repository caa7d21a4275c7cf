"""Which of the found examples go into the prompt, and in which order.

This is stage 2 of the paper's Example Selector (§4.1): score every candidate's usefulness, and take
as many of the best ones, within a token budget, as are worth most for this request.
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
from echolm.retrieval.count import ExampleCount
from echolm.retrieval.features import ExampleTexts, FeatureBatch, featurize
from echolm.retrieval.lookalikes import doubted, nothing_unseen
from echolm.retrieval.prefix import Prefix, WarmPrefixes
from echolm.retrieval.prefix_index import SharedPrefixIndex
from echolm.retrieval.record import NONE, RANK_FEATURES, SelectionRecord
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.sets import RankedSets
from echolm.retrieval.utility import LearnedUtility, UtilityModel
from echolm.settings import RetrievalSettings

_TEXTS = 65_536  # examples whose texts' features are kept, in 80 MB if there are so many
_HELPS = 0.5  # utility of an example that changes nothing
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
    """Columns of a row's examples in the order of the prompt; the others: see SelectionRecord, of
    which ``number`` is the ``count``."""

    columns: list[int]
    dropped: int
    number: int | None
    ranked: NDArray[np.float32]


class ExampleSelector:
    """Selects examples by utility, as many as are worth it, within a token budget.

    Args:
        count: says how many of the best examples a request gets.
        tokens: counts tokens of the LLM that will read the examples.
        rng: draws which example is dropped (leave-one-out) and which number of them is tried.
        newest: the statistics of requests that similarities are relative to.
        prefix_index: knows what other processes put into prompts for the same engines.
        unseen: the share of a transcript that the embedding model does not get to see.
    """

    def __init__(
        self,
        settings: RetrievalSettings,
        utility: UtilityModel,
        count: ExampleCount,
        tokens: TokenCounter,
        rng: np.random.Generator,
        newest: NewestStatistics,
        prefix_index: SharedPrefixIndex | None = None,
        unseen: Callable[[str], float] = nothing_unseen,
    ) -> None:
        self._settings = settings
        self.newest_statistics = newest
        self.utility = utility
        self.count = count
        self._texts = ExampleTexts(tokens, max(_TEXTS, MAX_BATCH_SIZE * settings.top_n))
        self._warm = WarmPrefixes(prefix_index)
        self._rng = rng
        self._unseen = unseen

    @property
    def learnables(self) -> list[Learnable]:
        """The parts that learn from the log."""
        learning: list[Learnable] = [self.newest_statistics]
        if isinstance(self.utility, LearnedUtility):
            learning.append(self.utility)
        if self._settings.adaptive_num_examples:
            learning.append(self.count)
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
        best = np.where(batch.valid, utilities, 0.0).max(axis=1)
        # Many examples that hardly help do not make one that does.
        good = batch.valid & (utilities >= _HELPS)
        fails = np.where(good, 1.0 - np.minimum(utilities, 1.0), 1.0)
        help_probabilities = np.maximum(1.0 - fails.prod(axis=1), best)
        chosen = self._choose(batch, self.utility.surely(batch))
        return self._conclude(batch, utilities, help_probabilities.tolist(), chosen)

    def _choose(self, batch: FeatureBatch, worths: NDArray[np.float32]) -> list[_Chosen | None]:
        """For each row its best examples, or a warm set that is nearly as good, in order."""
        ranked = np.argsort(np.where(batch.valid, -worths, np.inf), axis=1, kind="stable")
        num_valid = batch.valid.sum(axis=1).tolist()
        sets = []
        for row, worth in enumerate(worths.tolist()):
            order = ranked[row, : num_valid[row]].tolist()
            tokens = self._tokens_of(batch.slots[row].tolist(), batch.candidates[row])
            settings = self._settings
            limits = settings.max_examples, settings.max_example_tokens
            sets.append(RankedSets({k: worth[k] for k in order}, tokens, *limits))
        best = [one.completed() for one in sets]
        counts, seen = self._count(batch, worths, best)
        self._warm.poll()
        chosen = [
            self._set_of(
                batch, row, sets[row], best[row][:count], count, seen[row, : len(best[row])]
            )
            if best[row]
            else None
            for row, count in enumerate(counts)
        ]
        self._warm.publish()
        return chosen

    def _count(
        self, batch: FeatureBatch, worths: NDArray[np.float32], best: Sequence[Sequence[int]]
    ) -> tuple[list[int], NDArray[np.float32]]:
        """How many of its best examples each row gets, and what is known of these, [B, n, f]."""
        most = max(map(len, best))
        seen = np.zeros((len(best), most, RANK_FEATURES), np.float32)
        for row, columns in enumerate(best):
            seen[row, : len(columns), 0] = worths[row, columns]
            seen[row, : len(columns), 1] = batch.agreement[row, columns]
        available = np.array([len(columns) for columns in best])
        if not self._settings.adaptive_num_examples:
            return np.minimum(available, self._settings.num_examples).tolist(), seen
        return self.count.choose(batch.request, seen, available, self._rng).tolist(), seen

    def _set_of(
        self,
        batch: FeatureBatch,
        row: int,
        sets: RankedSets,
        best: list[int],
        count: int,
        seen: NDArray[np.float32],
    ) -> _Chosen:
        """A row's examples in order; now and then one of them is left out at random."""
        candidates, settings = batch.candidates[row], self._settings
        if settings.order == "prefix" and best:
            best = self._warmest(sets, best, batch.ids[row].tolist())
        kept = {k: candidates[k] for k in best}
        dropped, learnt = NONE, count if settings.adaptive_num_examples else None
        if len(kept) > 1 and self._rng.random() < settings.leave_one_out:
            dropped = kept.pop(list(kept)[int(self._rng.integers(len(kept)))]).id
            learnt = None  # no number leads to this set
        return _Chosen(self._ordered(kept), dropped, learnt, seen)

    def _tokens_of(
        self, slots: Sequence[int], candidates: Sequence[Candidate]
    ) -> Callable[[int], int]:
        return lambda column: self._texts.num_tokens(slots[column], candidates[column])

    def _warmest(self, sets: RankedSets, best: list[int], ids: Sequence[int]) -> list[int]:
        """Columns of the set that shares most with earlier prompts, if it is nearly as good.

        Args:
            best: columns of the best set, whose number the other one has, too.
        """
        worth = sets.worth
        given_up = len(best) * self._settings.warm_tolerance + _ROUNDING
        value, least = sum(worth[k] for k in best), min(worth[k] for k in best)
        # Candidates of less worth can hardly be in a set that is good enough.
        columns = {ids[k]: k for k in worth if worth[k] >= least - given_up}
        # The columns of the set that begins with each start.
        sets_by_start: dict[Prefix, list[int]] = {(): best}

        def nearly_as_good(start: Prefix) -> bool:
            chosen = [columns[i] for i in start]
            # The best set in another order has another value, and is good enough in any.
            if set(chosen) <= set(best):
                sets_by_start[start] = best
                return True
            other = sets.completed(chosen, len(best))
            sets_by_start[start] = other
            return (
                other[: len(chosen)] == chosen
                and len(other) >= len(best)
                and sum(worth[k] for k in other) >= value - given_up
            )

        return sets_by_start[self._warm.longest(list(columns), nearly_as_good)]

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
                batch.request[row], ids, features[here], num_tokens, *choice[1:]
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
