"""How many tokens a text takes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from echolm.errors import ConfigurationError


class TokenCounter(Protocol):
    """Tells how many tokens of an LLM a text takes."""

    def count(self, text: str) -> int: ...


class EstimatedTokens:
    """Counts without the LLM's tokenizer: an upper estimate from the text's bytes.

    English prose has about 4 bytes a token, code and other scripts fewer; 2.5 errs on the
    side of a prompt that fits.
    """

    bytes_per_token = 2.5

    def count(self, text: str) -> int:
        return int(len(text.encode("utf-8")) / self.bytes_per_token) + 1


class ExactTokens:
    """Counts with the LLM's own ``tokenizer.json``."""

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
    """Exact counts if a tokenizer is configured, estimates otherwise."""
    return EstimatedTokens() if path is None else ExactTokens(path)
