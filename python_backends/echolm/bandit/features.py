"""The bandit's context: what is known of a request and its examples before any LLM runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echolm.primitives import Selected
from echolm.settings import LLMSettings
from echolm.words import hash_word, words_of

SCALARS = (
    "irrelevance",
    "relevance",
    "best_similarity",
    "mean_similarity",
    "best_utility",
    "similarity_margin",
    "num_examples",
    "request_overlap",
    "response_agreement",
    "log_length",
)
"""Names of the context's first elements; the embedding's projection follows.

``relevance`` says how relevant the best example is, 0..1, and ``irrelevance`` is the rest to 1:
two weights instead of a constant and a slope, so that what an LLM does without examples says
nothing of what it does with them. The others are centred and, except for ``log_length``, multiplied
by the relevance.
"""

_TYPICAL_SIMILARITY = 0.8
# Before any rating, the topic and the length matter less than the examples. They are also what
# requests with and without examples share, so that with a larger scale poor answers without
# examples would count against requests with examples, too.
_PROJECTION_SCALE = 0.25
_LENGTH_SCALE = 0.25
_BITMAP_MASK = 2_047  # a bitmap has 2,048 bits, and a word's hash is cut to the index of its bit


@dataclass(frozen=True)
class Featurizer:
    """Turns a request into the context vector x, FP32 [len(SCALARS) + projection_dim].

    Attributes:
        projection_dim: dimensions of the fixed random projection of the embedding, which
            lets the bandit learn that one topic suits an LLM and another does not.
        min_similarity: cosine up to which an example is not relevant at all.
        similarity_saturation: cosine from which on an example is fully relevant.
    """

    projection_dim: int
    min_similarity: float = 0.6
    similarity_saturation: float = 0.85

    @property
    def dimension(self) -> int:
        """Length of the context vector."""
        return len(SCALARS) + self.projection_dim

    def __call__(
        self, text: str, embedding: NDArray[np.float32] | None, examples: Sequence[Selected]
    ) -> NDArray[np.float32]:
        """The context of one request, as in :meth:`many`."""
        context: NDArray[np.float32] = self.many([text], [embedding], [examples])[0]
        return context

    def many(
        self,
        texts: Sequence[str],
        embeddings: Sequence[NDArray[np.float32] | None],
        examples: Sequence[Sequence[Selected]],
    ) -> NDArray[np.float32]:
        """The contexts of several requests, FP32 [n, dimension].

        Args:
            embeddings: FP32 [D] each; for None the projection is zero.
            examples: those that are selected for each request.
        """
        x = np.zeros((len(texts), self.dimension), dtype=np.float32)
        rows = zip(texts, examples, strict=True)
        x[:, : len(SCALARS)] = [self._scalars(text, chosen) for text, chosen in rows]
        embedded = [k for k, e in enumerate(embeddings) if e is not None]
        if embedded and self.projection_dim:
            vectors = np.stack([e for e in embeddings if e is not None])
            projection = _projection(vectors.shape[-1], self.projection_dim)
            x[embedded, len(SCALARS) :] = _PROJECTION_SCALE * (vectors @ projection.T)
        return x

    def _scalars(self, text: str, examples: Sequence[Selected]) -> tuple[float, ...]:
        """The elements named in ``SCALARS``; in plain Python, since they are few."""
        length = _LENGTH_SCALE * (math.log1p(len(text)) / 10.0 - 0.45)
        if not examples:
            return (1.0, *(0.0,) * (len(SCALARS) - 2), length)
        ranked = sorted(examples, key=lambda e: (-e.similarity, e.id))
        similarities = [e.similarity for e in ranked]
        span = self.similarity_saturation - self.min_similarity
        relevance = min(1.0, max(0.0, (similarities[0] - self.min_similarity) / span))
        return (
            1.0 - relevance,
            relevance,
            relevance * (similarities[0] - _TYPICAL_SIMILARITY),
            relevance * (sum(similarities) / len(similarities) - _TYPICAL_SIMILARITY),
            relevance * (max(e.utility for e in examples) - _TYPICAL_SIMILARITY),
            relevance * (similarities[0] - similarities[1]) if len(similarities) > 1 else 0.0,
            relevance * (len(examples) / 4.0 - 0.5),
            relevance * (_overlap(_bitmap(text), _example_bitmap(ranked[0].request)) - 0.5),
            relevance * (_agreement([_example_bitmap(e.response) for e in ranked]) - 0.5),
            length,
        )

    def prior_mean(self, llm: LLMSettings) -> NDArray[np.float64]:
        """Prior weights of an LLM's quality, FP64 [dimension].

        An LLM that takes examples is expected to reach its ``prior_quality`` with a relevant
        example and to be poor without; any other LLM reaches it always.
        """
        mean = np.zeros(self.dimension)
        without_examples = llm.prior_quality / 3.0 if llm.takes_examples else llm.prior_quality
        mean[SCALARS.index("irrelevance")] = without_examples
        mean[SCALARS.index("relevance")] = llm.prior_quality
        return mean


@lru_cache
def _projection(dimension: int, projected: int) -> NDArray[np.float32]:
    """A random matrix, FP32 [projected, dimension], the same in every process and replica."""
    rng = np.random.default_rng(20250107)
    matrix = rng.standard_normal((projected, dimension)).astype(np.float32)
    matrix /= math.sqrt(projected)
    return matrix


def _bitmap(text: str) -> int:
    """The set of a text's words as bits of a number; two words hardly ever share a bit."""
    bitmap = 0
    for word in words_of(text):
        bitmap |= 1 << (hash_word(word) & _BITMAP_MASK)
    return bitmap


# The same examples are found again and again.
_example_bitmap = lru_cache(maxsize=16_384)(_bitmap)


def _overlap(a: int, b: int) -> float:
    """Jaccard index of two bitmaps."""
    either = (a | b).bit_count()
    return (a & b).bit_count() / either if either else 0.0


def _agreement(responses: Sequence[int]) -> float:
    """Mean pairwise overlap of the examples' responses: low if they tell different stories."""
    if len(responses) < 2:
        return 1.0
    pairs = [_overlap(a, b) for i, a in enumerate(responses) for b in responses[i + 1 :]]
    return sum(pairs) / len(pairs)
