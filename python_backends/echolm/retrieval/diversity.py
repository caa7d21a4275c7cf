"""Which candidates make the best set: maximal marginal relevance (Carbonell and Goldstein 1998)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ScoredSet(NamedTuple):
    """Candidates that go into a prompt together.

    Attributes:
        columns: which, in the order in which they were taken.
        value: the sum of what each adds to those before it.
        least: the smallest of these; 0 without any.
    """

    columns: list[int]
    value: float
    least: float


class MarginalRelevance:
    """Sets of one request's candidates, where each adds its worth less what the set has of it.

    Args:
        worth: of each candidate by itself, by its column, the best first.
        overlap: FP32 [n, n], what one loses beside another; None: nothing.
        tokens: of the candidate of a column.
        most: candidates in a set.
        budget: tokens in a set.
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
        self._beside: dict[int, list[float]] = {}  # rows of it as they are needed
        self._tokens = tokens
        self._most = most
        self._budget = budget

    def completed(self, start: Sequence[int] = ()) -> ScoredSet:
        """The set that begins with these and takes what adds most, one after the other.

        What exceeds the budget, also of the start, is left out.
        """
        left, budget = dict(self.worth), self._budget
        columns, gains = list[int](), list[float]()
        given = iter(start)
        while left and len(columns) < self._most:
            column = next(given, None)
            if column is None:
                # Of equals the first, which is the better one by itself.
                column = max(left, key=left.__getitem__)
            gain = left.pop(column)
            tokens = self._tokens(column)
            if tokens > budget:
                continue
            budget -= tokens
            columns.append(column)
            gains.append(gain)
            if self._overlap is not None and len(columns) < self._most:
                common = self._beside.get(column)
                if common is None:
                    common = self._beside[column] = self._overlap[column].tolist()
                worth = self.worth
                for k, value in left.items():
                    beside = worth[k] - common[k]
                    if beside < value:  # min() takes twice as long, and this is the inner loop
                        left[k] = beside
        return ScoredSet(columns, sum(gains), min(gains, default=0.0))
