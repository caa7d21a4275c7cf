"""A table of stored examples' texts in the form in which features are computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.conversation import last_turn
from echolm.llm.tokens import TokenCounter
from echolm.primitives import Candidate
from echolm.retrieval.features.texts import (
    BITMAP_BITS,
    MAX_WORDS,
    SKETCH_SIZE,
    bitmaps_and_sketches,
    popcount,
    words_and_literals,
)
from echolm.words import words_of

_NUMBERS = ("num_request_words", "num_response_words", "num_literals", "consistency")
_LENGTHS = ("request_length", "response_length")  # log(1 + characters)


class ExampleTexts:
    """What is known of stored examples' texts, in arrays of a fixed size; not the texts themselves.

    When the arrays are full, the examples that were looked up least recently make room.

    Args:
        tokens: counts tokens of the LLM that will read the examples.
        capacity: how many examples are kept, each in about 1.2 kB.
    """

    def __init__(self, tokens: TokenCounter, capacity: int = 16_384) -> None:
        self._tokens = tokens
        self._slots: dict[int, int] = {}  # by key
        self._free = list(reversed(range(capacity)))
        self._keys, self._num_tokens = [0] * capacity, [0] * capacity
        self._looked_up = np.zeros(capacity, dtype=np.int64)
        self._lookups = 0
        # Gathering whole rows of a structured array is several times slower.
        self._columns: dict[str, NDArray[Any]] = {
            "request_bitmap": np.zeros((capacity, BITMAP_BITS // 16), np.uint16),
            "request_sketch": np.zeros((capacity, SKETCH_SIZE), np.float32),
            "response_sketch": np.zeros((capacity, SKETCH_SIZE), np.float32),
            **{name: np.zeros(capacity, np.float32) for name in (*_NUMBERS, *_LENGTHS)},
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        """What is kept of texts under this name, for all slots, [capacity, …]."""
        return self._columns[name]

    def slots(self, candidates: Sequence[Candidate]) -> NDArray[np.intp]:
        """Where each candidate's values stand; at most ``capacity`` different ones at a time."""
        if not candidates:
            return np.zeros(0, dtype=np.intp)
        keys = list(map(_key, candidates))
        get = self._slots.get
        slots = [get(key, -1) for key in keys]
        self._lookups += 1
        if -1 in slots:
            # Marked first, so that none of them makes room for another.
            self._looked_up[[slot for slot in slots if slot >= 0]] = self._lookups
            new = {k: c for k, c, slot in zip(keys, candidates, slots, strict=True) if slot < 0}
            self._fill([self._keep(key) for key in new], list(new.values()))
            slots = [self._slots[key] for key in keys]
        places = np.array(slots, dtype=np.intp)
        self._looked_up[places] = self._lookups
        return places

    def _keep(self, key: int) -> int:
        """A slot for what is kept under a new key."""
        slot = self._slots[key] = self._vacant()
        self._keys[slot], self._num_tokens[slot] = key, -1
        self._looked_up[slot] = self._lookups
        return slot

    def _vacant(self) -> int:
        if not self._free:
            # Several at a time, since finding the oldest looks at all; none that this lookup needs.
            some = len(self._keys) // 64
            oldest = np.argpartition(self._looked_up, some)[: some + 1]
            self._free = oldest[self._looked_up[oldest] < self._lookups].tolist()
            for slot in self._free:
                del self._slots[self._keys[slot]]
        return self._free.pop()

    def _fill(self, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        n = len(candidates)
        asked = [last_turn(c.request) for c in candidates]
        parsed = [words_and_literals(text) for text in asked]
        request_words, literals = zip(*parsed, strict=True)
        responses = [c.response for c in candidates]
        response_words = [set(words_of(response)[:MAX_WORDS]) for response in responses]
        for words, candidate in zip(response_words, candidates, strict=True):
            # What a response has of its own request differs between examples that agree.
            words.difference_update(words_of(candidate.request))
        bitmaps, sketches = bitmaps_and_sketches([*request_words, *response_words])
        values = {
            "request_bitmap": bitmaps[:n],
            "request_sketch": sketches[:n],
            "response_sketch": sketches[n:],
            "num_request_words": popcount(bitmaps[:n]),
            "num_response_words": [len(words) for words in response_words],
            "num_literals": list(map(len, literals)),
            "consistency": [_consistency(*pair) for pair in zip(literals, responses, strict=True)],
            "request_length": [math.log1p(len(text)) for text in asked],
            "response_length": [math.log1p(len(response)) for response in responses],
        }
        for name, value in values.items():
            self._columns[name][slots] = value

    def num_tokens(self, slot: int, candidate: Candidate) -> int:
        """Tokens of a request and response, which stand in this slot; counted when first asked."""
        if self._num_tokens[slot] < 0:
            texts = candidate.request, candidate.response
            self._num_tokens[slot] = sum(map(self._tokens.count, texts))
        return self._num_tokens[slot]


def _key(candidate: Candidate) -> int:
    """64 bits of an example and its texts: a replayed example has another response.

    Every process hashes texts in another way, so that nobody can choose two of the same key.
    """
    return hash((candidate.id, candidate.request, candidate.response))


def _consistency(literals: set[str], response: str) -> float:
    """The share of the literals that a response repeats, less 1; 0 if there are no literals."""
    if not literals:
        return 0.0
    text = response.lower()
    return sum(map(text.__contains__, literals)) / len(literals) - 1.0
