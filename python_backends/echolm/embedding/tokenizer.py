"""Text to token ids, with the model's own ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from echolm.embedding.session import Ids
from echolm.embedding.spec import TOKENIZER_FILE, EmbedderSpec, check_built
from echolm.errors import ConfigurationError, InvalidRequestError

_PADS = ("[PAD]", "<pad>", "<|endoftext|>")


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of n texts, padded on the right to the longest: both INT64 ``[n, seq]``.

    ``attention_mask`` is 1 for a token and 0 for padding.
    """

    input_ids: Ids
    attention_mask: Ids


class TextTokenizer:
    """Tokenises batches. One instance may be used by several threads at once."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        """Load ``path``, a ``tokenizer.json`` of the tokenizers library.

        Text longer than ``max_tokens``, special tokens included, will be cut.

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
        known = [pad for pad in _PADS if self._tokenizer.token_to_id(pad) is not None]
        pad = (self._tokenizer.padding or {}).get("pad_token") or (known or [""])[0]
        # Set once: afterwards the object is only read, which is what makes it thread-safe.
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(pad_id=self._tokenizer.token_to_id(pad) or 0, pad_token=pad)

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """The tokenizer of an embedder's directory, with the limit of its ``embedder.json``."""
        return cls(directory / TOKENIZER_FILE, EmbedderSpec.read(directory).max_tokens)

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenise n ≥ 1 texts; the empty text has its special tokens only.

        Raises:
            InvalidRequestError: no texts, or one that is not a ``str`` of valid Unicode.
        """
        if isinstance(texts, str) or len(texts) == 0:
            raise InvalidRequestError.of("texts", "a sequence of one or more texts", texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise InvalidRequestError.of(f"texts[{index}]", "a str", type(text).__name__)
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts))
        except TypeError:  # each is a str, so what the library refuses is a lone surrogate
            raise InvalidRequestError.of("texts", "valid Unicode", "a lone surrogate") from None
        return TokenBatch(
            np.asarray([encoding.ids for encoding in encodings], np.int64),
            np.asarray([encoding.attention_mask for encoding in encodings], np.int64),
        )
