"""The model ``tokenizer``: texts and conversations to token ids, one tokenizer call per batch.

What is embedded off the path, a stored request for instance, comes as a text that may be a
transcript. A caller who forges one only changes what their own request is found by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm import contracts
from echolm.conversation import transcript
from echolm.embedding.tokenizer import TextTokenizer
from echolm.errors import InvalidRequestError
from echolm.router.validation import asked_of
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.batched import BatchedModel

_Tokens = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids and attention mask of one text, INT64 [tokens] each."""


class TritonPythonModel(BatchedModel[str, _Tokens]):
    """Tokenizes all requests of a batch together."""

    def initialize(self, args: dict[str, str]) -> None:
        self._settings = settings = load_settings()
        embedding = settings.embedding
        self._multiple = embedding.pad_to_multiple_of
        self._tokenizer = TextTokenizer.load(embedding.model_dir)

    def read(self, request: Any) -> list[str]:
        text_input, messages = (spec.name for spec in contracts.TOKENIZER.inputs)
        # Requests of several callers come together, and the router refuses what is wrong with one.
        conversations = codec.read(request, messages)
        if conversations is not None:
            return [self._transcript(data) for data in conversations.reshape(-1)]
        texts = codec.read(request, text_input)
        if texts is None:
            raise InvalidRequestError.of(f"{text_input}, {messages}", "one of them", "none")
        return [text.decode("utf-8", "replace") for text in texts.reshape(-1)]

    def _transcript(self, data: bytes) -> str:
        try:
            asked = asked_of(self._settings, None, data.decode())
        except (InvalidRequestError, UnicodeDecodeError):
            return ""
        return transcript(asked.turns)

    def run(self, rows: Sequence[str]) -> list[_Tokens]:
        batch = self._tokenizer.encode(rows)
        # A backend that batches only equal shapes needs few different lengths.
        padding = ((0, 0), (0, -batch.input_ids.shape[1] % self._multiple))
        ids, mask = np.pad(batch.input_ids, padding), np.pad(batch.attention_mask, padding)
        return list(zip(ids, mask, strict=True))

    def tensors(self, results: Sequence[_Tokens]) -> list[Any]:
        columns = zip(contracts.TOKENS, zip(*results, strict=True), strict=True)
        return [codec.tensor(spec, np.stack(column)) for spec, column in columns]
