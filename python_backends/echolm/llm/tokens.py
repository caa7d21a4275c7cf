"""How many tokens a text takes, counted or estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from echolm.errors import ConfigurationError
from echolm.llm.tokenizer_files import read_tokenizer_files, tokenizer_json


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
    """Counts with the LLM's own tokenizer.

    Args:
        path: a folder with a ``tokenizer.json``, or that file.

    Raises:
        ConfigurationError: there is none.
    """

    def __init__(self, path: Path) -> None:
        tokenizer = read_tokenizer_files(path).tokenizer
        if tokenizer is None:
            raise ConfigurationError(
                f"llms.tokenizer: expected a tokenizer.json, got no file {tokenizer_json(path)}"
            )
        self._tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def token_counter(path: Path | None) -> TokenCounter:
    """An exact counter if a tokenizer is configured, otherwise one that estimates."""
    return EstimatedTokens() if path is None else ExactTokens(path)
