"""The sets that a request's candidates can form: the best ones that fit into the token budget.

Candidates are not thinned out for being alike. Where requests are of one kind and their responses
agree, each one more makes it surer what a response to this request should be; only the same request
with the same response tells nothing new, and the store does not hold that twice
(:mod:`echolm.examples.deduplication`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain


class RankedSets:
    """Sets of one request's candidates.

    Args:
        worth: the worth of each candidate by its column, the best first.
        tokens: gives the number of tokens of a column's candidate.
        most, budget: most candidates, and most tokens, in a set.
    """

    def __init__(
        self, worth: Mapping[int, float], tokens: Callable[[int], int], most: int, budget: int
    ) -> None:
        self.worth = worth
        self._tokens = tokens
        self._most = most
        self._budget = budget

    def completed(self, start: Sequence[int] = (), most: int | None = None) -> list[int]:
        """Columns of the set that begins with these and goes on with the best of the others.

        A candidate that exceeds the budget is skipped, even if it is in the start.

        Args:
            most: candidates in this set, if fewer than in others.
        """
        columns, budget = list[int](), self._budget
        most = self._most if most is None else most
        for column in dict.fromkeys(chain(start, self.worth)):
            if len(columns) >= most:
                break
            tokens = self._tokens(column)
            if tokens <= budget:
                budget -= tokens
                columns.append(column)
        return columns
