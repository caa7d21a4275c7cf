"""The model ``embedder`` as a python model, where Triton has no ONNX Runtime backend.

The wheel that the local profile runs Triton from has no ONNX Runtime backend; GPU profiles
serve the same file with that backend instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from echolm import contracts
from echolm.embedding.embedder import OnnxEmbedder
from echolm.errors import InvalidRequestError
from echolm.settings.loading import load_settings
from echolm.triton import codec

_WARM_ROWS = 12
_WARM_TOKENS = 48


class TritonPythonModel:
    """Embeds all rows of a batch in one call, whatever their lengths."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        self._embedder = OnnxEmbedder.load(
            settings.embedding.model_dir, threads=settings.embedding.threads
        )
        self._warm_up()

    def _warm_up(self) -> None:
        """Show the runtime the shapes of short texts, which it else meets under load."""
        for tokens in range(8, _WARM_TOKENS + 1, 8):
            for rows in range(1, _WARM_ROWS + 1):
                ids = np.zeros((rows, tokens), dtype=np.int64)
                self._embedder.embed(ids, np.ones_like(ids))

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        ids_of: dict[int, NDArray[np.int64]] = {}
        masks: list[NDArray[np.int64]] = []
        for i, request in enumerate(requests):
            ids, mask = codec.read(request, "input_ids"), codec.read(request, "attention_mask")
            if ids is None or mask is None or ids.shape != mask.shape or ids.shape[-1] == 0:
                responses[i] = codec.error_response(
                    InvalidRequestError.of(
                        "input_ids",
                        "ids and mask of the same shape [n, tokens], tokens > 0",
                        f"{None if ids is None else ids.shape}, "
                        f"{None if mask is None else mask.shape}",
                    )
                )
                continue
            ids_of[i] = ids
            masks.append(mask)
        if ids_of:
            try:
                embeddings = self._embedder.embed(_stack(list(ids_of.values())), _stack(masks))
            except Exception as problem:
                for i in ids_of:
                    responses[i] = codec.error_response(problem)
                return responses
            start = 0
            for i, ids in ids_of.items():
                rows = slice(start, start + ids.shape[0])
                start = rows.stop
                responses[i] = pb_utils.InferenceResponse(
                    [codec.tensor(contracts.EMBEDDING, embeddings[rows])]
                )
        return responses


def _stack(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows of all arrays, padded with zeros to the longest: INT64 [sum of n, tokens]."""
    width = max(a.shape[1] for a in arrays)
    stacked = np.zeros((sum(a.shape[0] for a in arrays), width), dtype=np.int64)
    row = 0
    for a in arrays:
        stacked[row : row + a.shape[0], : a.shape[1]] = a
        row += a.shape[0]
    return stacked
