"""A language model of words, for stand-ins of libraries that need a GPU.

It has what the tests of an engine look at: tokens, an answer that the prompt, seed and
temperature decide, an end, time for each token, and a cache of prefixes.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence

_WORDS = (
    *("amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty"),
    *("knoll", "larch", "meadow", "north", "oasis", "pine", "quartz", "ridge", "shore", "trail"),
)
BLOCK_TOKENS = 4
EOS, BOS = 1, 2
SLOW_S = 0.02


class WordTokenizer:
    """A token is a word; ids are given in the order in which words are seen."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {"<s>": BOS}
        self._words: list[str] = ["<pad>", "</s>", "<s>"]
        self._lock = threading.Lock()
        for word in _WORDS:
            self._id(word)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        words = ["<s>", *text.split()] if add_special_tokens else text.split()
        return [self._id(word) for word in words]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(self._words[i] for i in ids if i not in (EOS, BOS))

    def first_word(self, ids: Sequence[int]) -> str:
        return self.decode(ids[:2]).partition(" ")[0]

    def _id(self, word: str) -> int:
        with self._lock:
            if word not in self._ids:
                self._ids[word] = len(self._words)
                self._words.append(word)
            return self._ids[word]


class WordModel:
    """Answers of 30 to 60 words.

    Attributes:
        step_s: time for a token; prompts that start with "slowly" take 20 ms.
    """

    def __init__(self, step_s: float = 0.0005) -> None:
        self.tokenizer = WordTokenizer()
        self.step_s = step_s
        self._prefixes: set[tuple[int, ...]] = set()

    def step_time(self, prompt: Sequence[int]) -> float:
        return SLOW_S if self.tokenizer.first_word(prompt) == "slowly" else self.step_s

    def answer(
        self, prompt: Sequence[int], temperature: float, seed: int | None
    ) -> list[tuple[int, float]]:
        """The tokens of an answer with their log probabilities, the end included."""
        if temperature == 0:
            seed = 0
        # By the words: another process may have met them in another order.
        words = self.tokenizer.decode(prompt)
        generator = random.Random(f"{words} {seed}" if seed is not None else None)
        tokens = [generator.choice(_WORDS) for _ in range(generator.randint(30, 60))]
        ids = [self.tokenizer.encode(word, add_special_tokens=False)[0] for word in tokens]
        return [(i, -math.log(1 + generator.random())) for i in [*ids, EOS]]

    def cached(self, prompt: Sequence[int]) -> int:
        """Tokens of the prompt whose prefix was there before; it is there from now on."""
        blocks = [tuple(prompt[:n]) for n in range(BLOCK_TOKENS, len(prompt), BLOCK_TOKENS)]
        found = [block for block in blocks if block in self._prefixes]
        self._prefixes.update(blocks)
        return max(map(len, found), default=0)
