"""Which candidates make the best set, by maximal marginal relevance (Carbonell, Goldstein 1998)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ScoredSet(NamedTuple):
    """Columns of candidates that go into a prompt together, in the order in which they were taken.

    Attributes:
        value: the sum of what each candidate adds to those before it.
        least: the smallest of these contributions; 0 for an empty set.
    """

    columns: list[int]
    value: float
    least: float


class MarginalRelevance:
    """Sets of one request's candidates, where each adds its worth less what the set has of it.

    Args:
        worth: the worth of each candidate by itself, by its column, the best first.
        overlap: what a candidate loses beside another, FP32 [n, n]; None if it loses nothing.
        tokens: gives the number of tokens of a column's candidate.
        most, budget: most candidates, and most tokens, in a set.
    """

    def __init__(
        self,
        worth: Mapping[int, float],
        overlap: NDArray[np.float32] | None,
        tokens: Callable[[int], int],
        most: int,
        budget: int,
    ) -> None:
        self.worth = worth
        self._overlap = overlap
        self._overlap_rows: dict[int, list[float]] = {}  # as lists, read when first needed
        self._tokens = tokens
        self._most = most
        self._budget = budget

    def completed(self, start: Sequence[int] = ()) -> ScoredSet:
        """The set that begins with these columns and takes what adds most, one after the other.

        A candidate that exceeds the budget is skipped, even if it is in the start.
        """
        remaining, budget = dict(self.worth), self._budget
        columns, gains = list[int](), list[float]()
        first = iter(start)
        while remaining and len(columns) < self._most:
            column = next(first, None)
            if column is None:
                # max() takes the first of equals, which is the better one by itself.
                column = max(remaining, key=remaining.__getitem__)
            gain = remaining.pop(column)
            tokens = self._tokens(column)
            if tokens > budget:
                continue
            budget -= tokens
            columns.append(column)
            gains.append(gain)
            if self._overlap is not None and len(columns) < self._most:
                common = self._overlap_rows.get(column)
                if common is None:
                    common = self._overlap_rows[column] = self._overlap[column].tolist()
                worth = self.worth
                for k, value in remaining.items():
                    beside = worth[k] - common[k]
                    if beside < value:  # min() takes twice as long, and this is the inner loop
                        remaining[k] = beside
        return ScoredSet(columns, sum(gains), min(gains, default=0.0))
