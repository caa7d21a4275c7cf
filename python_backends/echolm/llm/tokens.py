"""How many tokens a text takes, counted or estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from echolm.errors import ConfigurationError


class TokenCounter(Protocol):
    """Counts tokens of one LLM."""

    def count(self, text: str) -> int:
        """The number of tokens that a text takes, without special tokens around it."""


class EstimatedTokens:
    """Estimates without the LLM's tokenizer, from the text's bytes, rather too high.

    English prose has about 4 bytes a token, code and other scripts have fewer. With 2.5 a prompt
    that is estimated to fit hardly ever turns out to be too long.
    """

    bytes_per_token = 2.5

    def count(self, text: str) -> int:
        return int(len(text.encode("utf-8")) / self.bytes_per_token) + 1


class ExactTokens:
    """Counts with the LLM's own ``tokenizer.json``; ConfigurationError if there is no such file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigurationError(
                f"llms.tokenizer: expected a tokenizer.json, got no file {path}"
            )
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def token_counter(path: Path | None) -> TokenCounter:
    """An exact counter if a tokenizer is configured, otherwise one that estimates."""
    return EstimatedTokens() if path is None else ExactTokens(path)
