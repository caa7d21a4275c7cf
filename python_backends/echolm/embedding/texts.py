"""Texts to vectors outside of any server, for commands and measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from echolm.embedding.embedder import OnnxEmbedder
from echolm.embedding.tokenizer import TextTokenizer
from echolm.settings import EmbeddingSettings

_BATCH = 250


class TextEmbedder:
    """The configured tokenizer and embedder, in this process.

    Attributes:
        name, dimension: the embedding model's.
    """

    def __init__(self, settings: EmbeddingSettings) -> None:
        self._tokenizer = TextTokenizer.load(settings.model_dir)
        self._embedder = OnnxEmbedder.load(settings.model_dir)
        self.name, self.dimension = self._embedder.name, self._embedder.dimension

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """FP32 [n, D], unit length."""
        parts = [np.zeros((0, self.dimension), dtype=np.float32)]
        for start in range(0, len(texts), _BATCH):
            tokens = self._tokenizer.encode(list(texts[start : start + _BATCH]))
            parts.append(self._embedder.embed(tokens.input_ids, tokens.attention_mask))
        return np.concatenate(parts)
