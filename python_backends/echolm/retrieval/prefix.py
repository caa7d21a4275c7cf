"""Which examples in which order the engine's prefix cache may still hold.

Examples lengthen the prompt, which is what they cost. Requests that share the first examples
of their prompts share the KV cache of that prefix, so of examples that are nearly equally
useful those are taken, and in that order, which were used lately.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

Prefix = tuple[int, ...]


class WarmPrefixes:
    """Sequences of example ids that prompts started with, the oldest forgotten.

    Args:
        capacity: prefixes remembered.
    """

    def __init__(self, capacity: int = 4_096) -> None:
        self._capacity = capacity
        self._uses: OrderedDict[Prefix, int] = OrderedDict()
        self._popularity: OrderedDict[int, int] = OrderedDict()

    def warmest(self, chosen: Sequence[int], options: Sequence[int]) -> int:
        """Index of the option that makes, with those chosen, the warmest start of a prompt.

        Args:
            options: example ids, the most useful first; the first wins if none is warm.
        """
        before = tuple(chosen)
        uses, popularity = self._uses.get, self._popularity.get

        def warmth(k: int) -> tuple[int, int, int]:
            i = options[k]
            use = uses((*before, i), 0)
            if before:
                use = max(use, uses((i, *before), 0))
            return use, popularity(i, 0), -k

        return max(range(len(options)), key=warmth)

    def arrange(self, ids: Sequence[int]) -> list[int]:
        """The ids in the order that shares the longest prefix with earlier prompts.

        Where no order is warm, the most popular come first, since they are the likeliest to
        come again; then by id, so that every process agrees.
        """
        uses, popularity = self._uses.get, self._popularity.get
        left, order = list(ids), list[int]()
        while len(left) > 1:
            warmth = [(uses((*order, i), 0), popularity(i, 0), -i) for i in left]
            order.append(left.pop(warmth.index(max(warmth))))
        return order + left

    def use(self, order: Sequence[int]) -> None:
        """Remember a prompt's examples."""
        for length in range(1, len(order) + 1):
            _count(self._uses, tuple(order[:length]), self._capacity)
        for i in order:
            _count(self._popularity, i, self._capacity)


def _count(counts: OrderedDict, key: object, capacity: int) -> None:  # type: ignore[type-arg]
    counts[key] = counts.pop(key, 0) + 1  # which puts it at the end
    while len(counts) > capacity:
        counts.popitem(last=False)
