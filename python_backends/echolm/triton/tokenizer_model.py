"""The model ``tokenizer``: text to token ids, one tokenizer call per batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from echolm import contracts
from echolm.embedding.tokenizer import TextTokenizer
from echolm.errors import InvalidRequestError
from echolm.router.validation import check_text
from echolm.settings.loading import load_settings
from echolm.triton import codec

_INPUT_IDS, _ATTENTION_MASK = contracts.TOKENS


class TritonPythonModel:
    """Checks and tokenizes the texts of a batch; a bad text fails only its own request."""

    def initialize(self, args: dict[str, str]) -> None:
        settings = load_settings()
        self._max_chars = settings.limits.max_input_chars
        self._multiple = settings.embedding.pad_to_multiple_of
        self._tokenizer = TextTokenizer.load(settings.embedding.model_dir)

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        texts_of: dict[int, list[str]] = {}
        for i, request in enumerate(requests):
            try:
                texts_of[i] = self._read(request)
            except Exception as problem:
                responses[i] = codec.error_response(problem)
        texts = [text for own in texts_of.values() for text in own]
        if texts:
            batch = self._tokenizer.encode(texts)
            # A backend that batches only equal shapes needs few different lengths.
            missing = -batch.input_ids.shape[1] % self._multiple
            ids = np.pad(batch.input_ids, ((0, 0), (0, missing)))
            mask = np.pad(batch.attention_mask, ((0, 0), (0, missing)))
            start = 0
            for i, own in texts_of.items():
                rows = slice(start, start + len(own))
                start = rows.stop
                responses[i] = pb_utils.InferenceResponse(
                    [
                        codec.tensor(_INPUT_IDS, ids[rows]),
                        codec.tensor(_ATTENTION_MASK, mask[rows]),
                    ]
                )
        return responses

    def _read(self, request: Any) -> list[str]:
        raw = codec.read(request, "text_input")
        if raw is None:
            raise InvalidRequestError.of("text_input", "a BYTES tensor of shape [n, 1]", "none")
        return [
            check_text(codec.decode(text, "text_input"), self._max_chars)
            for text in raw.reshape(-1)
        ]
