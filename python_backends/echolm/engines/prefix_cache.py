"""An estimate of what a prefix cache holds, for engines that do not report their hits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import takewhile

BLOCK_TOKENS = 32
"""Tokens of a block of OpenVINO's KV cache on CPUs."""


class PrefixCacheEstimate:
    """Mirrors a cache of ``blocks`` whole blocks, each known by its tokens and all before them.

    The least recently used block is forgotten first. It differs from the engine's cache where
    that also keeps a block filled in part, which makes this a low estimate, and where blocks
    are forgotten in another order.
    """

    def __init__(self, blocks: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self._blocks = blocks
        self._block_tokens = block_tokens
        self._held: OrderedDict[int, None] = OrderedDict()
        self.hit_tokens = 0

    def prompt(self, tokens: Sequence[int]) -> int:
        """Take in a new prompt and return how many of its tokens were found.

        The last token is never taken from a cache: the engine needs it to go on.
        """
        keys = self._keys(tokens)
        usable = keys[: (len(tokens) - 1) // self._block_tokens]
        found = list(takewhile(self._held.__contains__, usable))
        self._hold(keys)
        hit = len(found) * self._block_tokens
        self.hit_tokens += hit
        return hit

    def answered(self, tokens: Sequence[int]) -> None:
        """Take in a prompt with its answer, which takes up blocks as well."""
        self._hold(self._keys(tokens))

    def _keys(self, tokens: Sequence[int]) -> list[int]:
        """A key of each whole block."""
        keys, key = [], 0
        for end in range(self._block_tokens, len(tokens) + 1, self._block_tokens):
            key = hash((key, tuple(tokens[end - self._block_tokens : end])))
            keys.append(key)
        return keys

    def _hold(self, keys: Sequence[int]) -> None:
        for key in keys:
            self._held[key] = None
            self._held.move_to_end(key)
        while len(self._held) > self._blocks:
            self._held.popitem(last=False)
