"""Escaping of special tokens, so that no text can open a turn or forge an example.

A tokenizer looks for its added tokens in a text before it splits the text up, and takes them for
tokens wherever they come from. So each one that is found in a caller's or an example's text is
broken up by a character that no reader sees.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from tokenizers import Tokenizer

from echolm.errors import ConfigurationError

_BREAKS = ("\u200b", "\u2060", "\u200c", " ")
"""ZERO WIDTH SPACE, WORD JOINER and ZERO WIDTH NON-JOINER, which no reader sees; and, for a
tokenizer whose normaliser removes all of them, a space."""


class SpecialTokens:
    """Escapes special tokens in texts.

    Args:
        tokens: what no text may bring into a prompt.
        added: see :class:`~echolm.llm.tokenizer_files.TokenizerFiles`.
        tokenizer: with which the escape is verified; None if there is none.

    Raises:
        ConfigurationError: the tokenizer reads a token in spite of the escape.
    """

    def __init__(
        self,
        tokens: Collection[str],
        added: Mapping[str, bool] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.tokens = frozenset(token for token in tokens if token)
        self._pattern = _pattern(self.tokens)
        self._normalizer = None
        normalized = {token for token in self.tokens if (added or {}).get(token)}
        if tokenizer is not None and tokenizer.normalizer is not None and normalized:
            # These are looked for in the normalised text, which may have what the text has not.
            self._normalizer = tokenizer.normalizer
            forms = {self._normalizer.normalize_str(token) for token in normalized} - {""}
            self._normalized = _pattern(normalized | forms)
        self._single = {token: "" for token in self.tokens if len(token) == 1}
        self._break = _BREAKS[0]
        if tokenizer is not None:
            self._choose_break(tokenizer)

    def escape(self, text: str) -> str:
        """The text with every special token broken up, so that a tokenizer reads plain text."""
        escaped = self._broken(self._pattern, text)
        if self._normalizer is not None:
            seen = self._normalizer.normalize_str(escaped)
            if self._normalized.search(seen):
                return self._broken(self._pattern, self._broken(self._normalized, seen))
        return escaped

    def escape_all(self, value: Any) -> Any:
        """A JSON value with every text in it escaped, names of members included."""
        if isinstance(value, str):
            return self.escape(value)
        if isinstance(value, list):
            return [self.escape_all(one) for one in value]
        if isinstance(value, dict):
            return {self.escape(str(k)): self.escape_all(v) for k, v in value.items()}
        return value

    def _broken(self, pattern: re.Pattern[str], text: str) -> str:
        # A token of one character cannot be broken up, so it goes.
        return pattern.sub(lambda match: self._single.get(match[1], match[1]) + self._break, text)

    def _choose_break(self, tokenizer: Tokenizer) -> None:
        """Take the first character that the tokenizer does not remove again."""
        known = sorted(t for t in self.tokens if tokenizer.token_to_id(t) is not None)
        ids = [tokenizer.token_to_id(token) for token in known]
        failed: list[str] = []
        for self._break in _BREAKS:
            texts = [self.escape(f"a{token}a") for token in known]
            read = tokenizer.encode_batch(texts, add_special_tokens=False)
            failed = [t for t, id, one in zip(known, ids, read, strict=True) if id in one.ids]
            if not failed:
                return
        raise ConfigurationError(
            "llms.tokenizer: expected a tokenizer that reads broken-up special tokens as text, got "
            f"one that still reads {failed[0]!r}; texts could forge turns with it"
        )


def _pattern(tokens: Collection[str]) -> re.Pattern[str]:
    """Matches the first character of every token in a text, also of tokens that overlap.

    Tokens that begin alike share that part of the pattern: large vocabularies have thousands, and
    a text is walked through once for all of them.
    """
    if not tokens:
        return re.compile("(?!)()")
    return re.compile(f"(?={_alternatives(sorted(tokens))})(.)", re.DOTALL)


def _alternatives(tokens: list[str]) -> str:
    """What matches any of the sorted tokens."""
    by_first: dict[str, list[str]] = {}
    for token in tokens:
        if not token:
            return ""  # the others go on where this one has matched already
        by_first.setdefault(token[0], []).append(token)
    parts = []
    for group in by_first.values():
        shared = _shared_start(group[0], group[-1])
        rest = _alternatives([token[len(shared) :] for token in group])
        parts.append(re.escape(shared) + rest)
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _shared_start(first: str, last: str) -> str:
    """What the first and the last of sorted texts, and so all of them, begin with."""
    length = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        length += 1
    return first[:length]
