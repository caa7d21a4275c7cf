"""The model ``tokenizer``: text to token ids, one tokenizer call per batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm import contracts
from echolm.embedding.tokenizer import TextTokenizer
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.batched import BatchedModel

_Tokens = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids and attention mask of one text, INT64 [tokens] each."""


class TritonPythonModel(BatchedModel[str, _Tokens]):
    """Tokenizes the texts of a batch together."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        embedding = settings.embedding
        # The router refuses longer texts, and must not wait for their tokens.
        self._max_chars = settings.limits.max_input_chars
        self._multiple = embedding.pad_to_multiple_of
        self._tokenizer = TextTokenizer.load(embedding.model_dir)

    def read(self, request: Any) -> list[str]:
        texts = codec.read(request, contracts.TOKENIZER.inputs[0].name)
        assert texts is not None, "it is not optional"
        # Texts of several callers come together, and the router refuses what is not UTF-8.
        return [text.decode("utf-8", "replace")[: self._max_chars] for text in texts.reshape(-1)]

    def run(self, rows: Sequence[str]) -> list[_Tokens]:
        batch = self._tokenizer.encode(rows)
        # A backend that batches only equal shapes needs few different lengths.
        padding = ((0, 0), (0, -batch.input_ids.shape[1] % self._multiple))
        ids, mask = np.pad(batch.input_ids, padding), np.pad(batch.attention_mask, padding)
        return list(zip(ids, mask, strict=True))

    def tensors(self, results: Sequence[_Tokens]) -> list[Any]:
        columns = zip(contracts.TOKENS, zip(*results, strict=True), strict=True)
        return [codec.tensor(spec, np.stack(column)) for spec, column in columns]
