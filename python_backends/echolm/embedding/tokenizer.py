"""Text to token ids, with the model's own ``tokenizer.json``.

A model reads a window of some hundred tokens. Of a longer text it gets the beginning and the end,
which say more than the middle. A conversation (:func:`echolm.conversation.transcript`) it reads in
three parts: as a whole, what was said last, and the turns before that. The mean of their vectors is
near that of another conversation only if all three are, so that neither a long history hides what
is asked, nor the same question what it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers

from echolm.conversation import is_conversation, turns_of
from echolm.embedding.session import Ids
from echolm.embedding.spec import TOKENIZER_FILE, EmbedderSpec, check_built
from echolm.errors import ConfigurationError, InvalidRequestError

WINDOW_VERSION = 2
"""Raised when other tokens or parts of a text are embedded, so that what an earlier version made of
such texts is not comparable. 2 embeds a conversation in parts; other texts are as they were."""

_PADS = ("[PAD]", "<pad>", "<|endoftext|>")
_CHARS_PER_TOKEN = 16
"""Characters that are read for each token of the window, from either end of a text: nobody waits
for the tokens of a middle that will not be used."""
_OF_EARLIER_TURN = 4
"""What part of the window a turn before the last gets at most, so that a long answer does not hide
what it answers; and what a last turn that is too long leaves to all turns before it."""
_OF_CONTEXT = 3
"""What part of the window all turns before the last get at most."""

_Part = list[int]


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of n texts, padded on the right to the longest: both INT64 ``[n, seq]``.

    ``attention_mask`` is 0 for padding, and for a token the number of its part, from 1 on; see
    :meth:`~echolm.embedding.embedder.OnnxEmbedder.embed`. A text that is no conversation has one.
    """

    input_ids: Ids
    attention_mask: Ids


@dataclass(frozen=True)
class _Window:
    """What of a text a model gets to see.

    Attributes:
        context, asked: of the turns before the last, and of the last.
        total: tokens of the whole text; estimated where it is very long.
    """

    context: _Part
    asked: _Part
    total: int

    @property
    def parts(self) -> tuple[_Part, ...]:
        """What is embedded by itself."""
        if not self.context or not self.asked:
            return (self.context + self.asked,)
        return self.context + self.asked, self.asked, self.context


class TextTokenizer:
    """Tokenises batches. One instance may be used by several threads at once."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Load ``path``, a ``tokenizer.json`` of the tokenizers library.

        Of text longer than ``max_tokens``, special tokens included, parts will be left out.

        Raises:
            ConfigurationError: the file is missing or is not a tokenizer, or
                ``max_tokens`` leaves no room beside the special tokens.
        """
        check_built(path, "tokenizer")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            message = f"tokenizer: {path} is not a tokenizer.json: {error}"
            raise ConfigurationError(message) from error
        special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if max_tokens <= special:
            message = f"tokenizer: max_tokens: expected more than {special}, got {max_tokens}"
            raise ConfigurationError(message)
        self.max_tokens = max_tokens
        self._room = max_tokens - special
        known = [pad for pad in _PADS if self._tokenizer.token_to_id(pad) is not None]
        pad = (self._tokenizer.padding or {}).get("pad_token") or (known or [""])[0]
        self._pad_id = self._tokenizer.token_to_id(pad) or 0
        # Set once: afterwards the object is only read, which is what makes it thread-safe.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        framed = self._tokenizer.encode("a")
        first = framed.special_tokens_mask.index(0)
        last = len(framed.ids) - framed.special_tokens_mask[::-1].index(0)
        self._before, self._after = framed.ids[:first], framed.ids[last:]

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """The tokenizer of an embedder's directory, with the limit of its ``embedder.json``."""
        return cls(directory / TOKENIZER_FILE, EmbedderSpec.read(directory).max_tokens)

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise n ≥ 1 texts or transcripts; the empty text has its special tokens only.

        Raises:
            InvalidRequestError: no texts, or one that is not a ``str`` of valid Unicode.
        """
        if isinstance(texts, str) or len(texts) == 0:
            raise InvalidRequestError.of("texts", "a sequence of one or more texts", texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidRequestError.of(f"texts[{index}]", "a str", type(text).__name__)
        windows = self._windows(texts)
        framed = [[[*self._before, *part, *self._after] for part in w.parts] for w in windows]
        longest = max(sum(map(len, parts)) for parts in framed)
        ids = np.full((len(framed), longest), self._pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, parts in enumerate(framed):
            tokens = [token for part in parts for token in part]
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = np.repeat(np.arange(1, len(parts) + 1), [*map(len, parts)])
        return TokenBatch(ids, mask)

    def unseen(self, text: str) -> float:
        """The share of a text's or transcript's tokens that :meth:`encode` leaves out, in [0, 1).

        InvalidRequestError as there.
        """
        if text.isascii() and len(text) < self._room:  # which is cheaper to tell
            return 0.0
        [window] = self._windows([text])
        seen = len(window.context) + len(window.asked)
        return max(0.0, 1.0 - seen / window.total) if window.total else 0.0

    def _windows(self, texts: Sequence[str]) -> list[_Window]:
        """What the model sees of each text, without special tokens; one call for all parts."""
        split = [
            [turn.text or turn.tool_calls for turn in turns_of(t)] if is_conversation(t) else [t]
            for t in texts
        ]
        reach = self._room * _CHARS_PER_TOKEN
        parts = [part for turns in split for turn in turns for part in _ends(turn, reach)]
        try:
            encoded = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        except TypeError:  # each is a str, so what the library refuses is a lone surrogate
            raise InvalidRequestError.of("texts", "valid Unicode", "a lone surrogate") from None
        ids = (encoding.ids for encoding in encoded)
        windows = []
        for turns in split:
            read = [list(islice(ids, len(_ends(turn, reach)))) for turn in turns]
            windows.append(self._window(turns, read, reach))
        return windows

    def _window(self, turns: Sequence[str], read: Sequence[Sequence[_Part]], reach: int) -> _Window:
        """The window of a conversation, or of a single turn.

        Args:
            read: tokens of each turn: all, or those of its beginning and its end.
        """
        pairs = zip(turns, read, strict=True)
        total = sum(_total(turn, parts, reach) for turn, parts in pairs)
        *earlier, last = read
        most = self._room
        if len(last) > 1 or len(last[0]) > most:  # by itself too long
            most -= min(most // _OF_EARLIER_TURN, sum(len(p) for parts in earlier for p in parts))
        asked = _shortened(last, most)
        left = min(self._room - len(asked), self._room // _OF_CONTEXT)
        context: _Part = []
        for parts in reversed(earlier):
            of_turn = _shortened(parts, min(left - len(context), self._room // _OF_EARLIER_TURN))
            context = of_turn + context
        return _Window(context, asked, total)


def _ends(text: str, reach: int) -> tuple[str, ...]:
    """The text, or, where it is very long, so many characters of its beginning and its end."""
    return (text,) if len(text) <= 2 * reach else (text[:reach], text[-reach:])


def _total(text: str, parts: Sequence[_Part], reach: int) -> int:
    tokens = sum(map(len, parts))
    return tokens if len(parts) == 1 else int(tokens * len(text) / (2 * reach)) + 1


def _shortened(parts: Sequence[_Part], most: int) -> _Part:
    """At most so many tokens of a turn: if not all, half of them from either end."""
    beginning, end = parts[0], parts[-1]
    if len(parts) == 1 and len(beginning) <= most:
        return beginning
    half = most // 2
    return beginning[: most - half] + (end[-half:] if half else [])
