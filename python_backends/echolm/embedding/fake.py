"""An embedder without a model, for unit tests of the parts behind it."""

from __future__ import annotations

import numpy as np

from echolm.embedding.runtimes import Ids, Vectors


class FakeEmbedder:
    """Hashed bag of tokens: the same tokens give the same vector in any order, and texts
    that share tokens are near. Deterministic across processes."""

    def __init__(self, dimension: int = 64, name: str = "fake") -> None:
        self.name = name
        self.dimension = dimension

    def embed(self, input_ids: Ids, attention_mask: Ids) -> Vectors:
        vectors = np.zeros((len(input_ids), self.dimension), np.float32)
        for row, (ids, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            for token in ids[mask == 1]:
                vectors[row] += np.random.default_rng(int(token)).standard_normal(
                    self.dimension, np.float32
                )
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors
