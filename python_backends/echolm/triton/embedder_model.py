"""The model ``embedder`` as a python model, where Triton has no ONNX Runtime backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm import contracts
from echolm.embedding.embedder import OnnxEmbedder
from echolm.settings.loading import load_settings
from echolm.triton import codec
from echolm.triton.batched import BatchedModel

_Ids = NDArray[np.int64]
_Tokens = tuple[_Ids, _Ids]
"""Ids and attention mask of one text, INT64 [tokens] each."""


class TritonPythonModel(BatchedModel[_Tokens, NDArray[np.float32]]):
    """Embeds all rows of a batch in one call, whatever their lengths."""

    def initialize(self, args: dict[str, str]) -> None:
        embedding = load_settings().embedding
        self._embedder = OnnxEmbedder.load(embedding.model_dir, threads=embedding.threads)
        self._embedder.warm_up()

    def read(self, request: Any) -> list[_Tokens]:
        rows = codec.read_rows(request, contracts.EMBEDDER.inputs)
        ids, masks = (np.stack([row[tensor.name] for row in rows]) for tensor in contracts.TOKENS)
        self._embedder.check(ids, masks)  # here, so that bad tokens fail their own request only
        return list(zip(ids, masks, strict=True))

    def run(self, rows: Sequence[_Tokens]) -> list[NDArray[np.float32]]:
        ids, masks = zip(*rows, strict=True)
        return list(self._embedder.embed(_stack(ids), _stack(masks)))

    def tensors(self, results: Sequence[NDArray[np.float32]]) -> list[Any]:
        return [codec.tensor(contracts.EMBEDDING, np.stack(results))]


def _stack(rows: Sequence[_Ids]) -> _Ids:
    """Rows padded with zeros to the longest: INT64 [n, tokens]."""
    stacked = np.zeros((len(rows), max(row.size for row in rows)), dtype=np.int64)
    for i, row in enumerate(rows):
        stacked[i, : row.size] = row
    return stacked
