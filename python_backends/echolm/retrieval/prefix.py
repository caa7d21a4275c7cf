"""Which examples in which order the engine's prefix cache may still hold.

Examples lengthen the prompt, which is what they cost. Requests that share the first examples
of their prompts share the KV cache of that prefix, so of sets of examples that are nearly equally
useful the one is taken, and in that order, that shares most with earlier prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from echolm.retrieval.prefix_index import SharedPrefixIndex

Prefix = tuple[int, ...]

_WIDTH = 8
"""Continuations of a start that are looked at, so that the first ones do not use up all looks."""
_ORDERS = 325
"""Starts that five examples can have."""


class WarmPrefixes:
    """Sequences of example ids that prompts started with, the oldest forgotten.

    Args:
        board: by which processes whose prompts go to the same engines tell each other of them.
        capacity: prefixes remembered.
    """

    def __init__(self, board: SharedPrefixIndex | None = None, capacity: int = 16_384) -> None:
        self._board = board
        self._untold: list[Sequence[int]] = []
        self._capacity = capacity
        self._uses: OrderedDict[Prefix, int] = OrderedDict()
        self._popularity: OrderedDict[int, int] = OrderedDict()

    def longest(
        self, ids: Sequence[int], allowed: Callable[[Prefix], bool], looks: int = 24
    ) -> Prefix:
        """The longest start of an earlier prompt, of equally long ones the one used most.

        Args:
            ids: of which it may consist.
            allowed: whether a start may be taken; one that may not is not continued.
            looks: most starts that are asked about; the most used come first.
        """
        uses = self._uses
        best: tuple[int, int, Prefix] = (0, 0, ())
        open_starts: list[Prefix] = [()]
        while open_starts and looks:
            start = open_starts.pop()
            if start:
                looks -= 1
                if not allowed(start):
                    continue
                best = max(best, (len(start), uses[start], start))
            longer = [(*start, i) for i in ids if i not in start]
            warm = [one for one in longer if one in uses]
            open_starts += sorted(warm, key=uses.__getitem__)[-_WIDTH:]
        return best[2]

    def arrange(self, ids: Sequence[int]) -> list[int]:
        """The ids in the order that shares the longest prefix with earlier prompts.

        Where no order is warm, the most popular come first, since they are the likeliest to
        come again; then by id, so that every process agrees.
        """
        start = self.longest(ids, lambda _: True, _ORDERS)
        popularity = self._popularity.get
        rest = [i for i in ids if i not in start]
        return [*start, *sorted(rest, key=lambda i: (-popularity(i, 0), i))]

    def use(self, order: Sequence[int]) -> None:
        """Remember a prompt's examples."""
        self._remember(order)
        if self._board is not None:
            self._untold.append(order)

    def tell(self) -> None:
        """Tell other processes what was used since the last time."""
        if self._board is not None:
            self._board.append(self._untold)
            self._untold = []

    def catch_up(self) -> None:
        """Remember what other processes have told."""
        if self._board is not None:
            for order in self._board.news():
                self._remember(order)

    def _remember(self, order: Sequence[int]) -> None:
        for length in range(1, len(order) + 1):
            _count(self._uses, tuple(order[:length]), self._capacity)
        for i in order:
            _count(self._popularity, i, self._capacity)


def _count(counts: OrderedDict, key: object, capacity: int) -> None:  # type: ignore[type-arg]
    counts[key] = counts.pop(key, 0) + 1  # which puts it at the end
    while len(counts) > capacity:
        counts.popitem(last=False)
