"""Token ids to text while they are generated: whole characters only, stop words held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_INCOMPLETE = 3
"""An incomplete character shows as one U+FFFD, or as one for each of its bytes (at most 3)."""
_MAX_WINDOW = 64
"""Tokens after which text that never becomes whole is emitted as it is."""

Decode = Callable[[Sequence[int]], str]


class IncrementalDecoder:
    """Turns a growing sequence of token ids into text.

    A token can be part of a character, and its text can depend on its left neighbours (a
    leading space, for example). So each step decodes a short window that starts one emitted
    piece earlier, gives what is new in it, and waits while it ends in an incomplete character.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._window = 0  # where the window starts
        self._settled = 0  # the text of the tokens before this has been emitted
        self._emitted = 0  # characters of the window's text that have been emitted

    def push(self, ids: Sequence[int]) -> str:
        """Take new tokens; give the text that is certain now."""
        self._ids.extend(ids)
        text = self._pending()
        incomplete = len(text) - len(text.rstrip(REPLACEMENT))
        if not incomplete or len(self._ids) - self._settled > _MAX_WINDOW:
            self._settle()
            return text
        text = text[: len(text) - min(incomplete, _MAX_INCOMPLETE)]
        self._emitted += len(text)
        return text

    def flush(self) -> str:
        """The rest, when no more tokens come; an incomplete character becomes U+FFFD."""
        text = self._pending()
        self._settle()
        return text

    def _pending(self) -> str:
        return self._decode(self._ids[self._window :])[self._emitted :]

    def _settle(self) -> None:
        if self._settled < len(self._ids):
            self._window, self._settled = self._settled, len(self._ids)
        self._emitted = len(self._decode(self._ids[self._window :]))


class StopWords:
    """Cuts a text that comes in pieces at the first stop word, which ``matched`` then is."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Take the next piece; give what cannot be part of a stop word any more."""
        if self.matched is not None:
            return ""
        if not self._words:
            return text
        buffer = self._held + text
        matches = [(at, -len(word), word) for word in self._words if (at := buffer.find(word)) >= 0]
        if matches:
            at, _, self.matched = min(matches)
            self._held = ""
            return buffer[:at]
        certain = len(buffer) - self._possible_start(buffer)
        self._held = buffer[certain:]
        return buffer[:certain]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self._held = self._held, ""
        return text

    def _possible_start(self, buffer: str) -> int:
        """Length of the longest end of ``buffer`` that is the start of a stop word."""
        longest = max(map(len, self._words)) - 1
        for length in range(min(longest, len(buffer)), 0, -1):
            if any(word.startswith(buffer[-length:]) for word in self._words):
                return length
        return 0
