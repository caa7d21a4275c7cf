"""Which examples in which order the engine's prefix cache may still hold.

Requests whose prompts begin with the same examples share the KV cache of that prefix. So of sets of
examples that are nearly equally useful, the one is taken that shares most with earlier prompts, in
the order in which it does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from echolm.retrieval.prefix_index import SharedPrefixIndex
from echolm.retrieval.record import remember

Prefix = tuple[int, ...]

_WIDTH = 8  # most continuations of a start that are looked at, so that some looks remain
_ORDERS = 325  # the number of starts that five examples can have


class WarmPrefixes:
    """Sequences of example ids that prompts started with; the oldest are forgotten.

    Args:
        prefix_index: shares prompts with other processes whose prompts go to the same engines.
        capacity: most prefixes that are remembered.
    """

    def __init__(
        self, prefix_index: SharedPrefixIndex | None = None, capacity: int = 16_384
    ) -> None:
        self._prefix_index = prefix_index
        self._unpublished: list[Sequence[int]] = []
        self._capacity = capacity
        self._uses: OrderedDict[Prefix, int] = OrderedDict()
        self._popularity: OrderedDict[int, int] = OrderedDict()

    def longest(
        self, ids: Sequence[int], allowed: Callable[[Prefix], bool], looks: int = 24
    ) -> Prefix:
        """The longest start of an earlier prompt; of equally long ones the most used.

        Args:
            ids: ids of the examples of which it may consist.
            allowed: whether a start may be taken; one that may not is not continued.
            looks: most starts that ``allowed`` is asked about; the most used come first.
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
            warm = [prefix for prefix in longer if prefix in uses]
            open_starts += sorted(warm, key=uses.__getitem__)[-_WIDTH:]
        return best[2]

    def arrange(self, ids: Sequence[int]) -> list[int]:
        """The ids in the order that shares the longest prefix with earlier prompts.

        The others follow by popularity, since the most popular are the likeliest to come again,
        and then by id, so that every process agrees.
        """
        start = self.longest(ids, lambda _: True, _ORDERS)
        popularity = self._popularity.get
        rest = [i for i in ids if i not in start]
        return [*start, *sorted(rest, key=lambda i: (-popularity(i, 0), i))]

    def use(self, order: Sequence[int]) -> None:
        """Remember a prompt's examples."""
        self._remember(order)
        if self._prefix_index is not None:
            self._unpublished.append(order)

    def publish(self) -> None:
        """Let other processes know the prompts that were used since the last call."""
        if self._prefix_index is not None:
            self._prefix_index.publish(self._unpublished)
            self._unpublished = []

    def poll(self) -> None:
        """Remember the prompts that other processes have published."""
        if self._prefix_index is not None:
            for order in self._prefix_index.poll():
                self._remember(order)

    def _remember(self, order: Sequence[int]) -> None:
        for k, i in enumerate(order):
            start = tuple(order[: k + 1])
            remember(self._uses, start, self._uses.get(start, 0) + 1, self._capacity)
            remember(self._popularity, i, self._popularity.get(i, 0) + 1, self._capacity)
