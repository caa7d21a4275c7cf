"""The bandit's context: what is known of a request and its examples before any LLM runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echolm.conversation import last_turn
from echolm.learning.logistic import GaussianWeights, logit
from echolm.learning.request_statistics import NUM_COMPONENTS, RequestStatistics
from echolm.primitives import Selected
from echolm.settings import LLMSettings
from echolm.words import hash_word, words_of

SCALARS = (
    "without_examples",
    "with_examples",
    "log_length",
    "best_similarity",
    "mean_similarity",
    "similarity_margin",
    "best_utility",
    "num_examples",
    "request_overlap",
    "response_agreement",
)
"""Names of the context's first elements; the embedding's principal components follow.

The first two say whether there are any, and are 1 or 0: two weights instead of a constant and what
examples add to it, so that what an LLM does without examples says nothing of what it does with
them. All but these two are centred, and all but the first three are 0 for a request without
examples. Length and similarities are relative to what is typical of this service's requests.
"""

HAS_EXAMPLES = SCALARS.index("with_examples")
DIMENSION = len(SCALARS) + NUM_COMPONENTS
"""Length d of a context."""

_LOG_LENGTH = SCALARS.index("log_length")
_SIMILARITIES = tuple(SCALARS.index(f"{name}_similarity") for name in ("best", "mean"))
_MARGIN, _UTILITY = SCALARS.index("similarity_margin"), SCALARS.index("best_utility")
_AGREEMENT = SCALARS.index("response_agreement")
_MOST = 2.0  # a feature of examples is cut to this, so that no odd one decides alone
_KEPT_VERSIONS = 4  # of the statistics, for contexts that were made some time ago
_BITMAP_MASK = 2_047  # a bitmap has 2,048 bits, and a word's hash is cut to the index of its bit

# Standard deviations of the weights before any evidence; those of the first two follow from
# ``prior_ratings``. To an LLM that does not see the examples, they say little.
_LENGTH, _COMPONENT = 1.0, 0.3
_TELLING, _SEEN, _UNSEEN = 1.0, 0.5, 0.25
_ALIKE = 0.97  # correlation of what such an LLM does without and with them
# Log-odds that examples are expected to add, and what a step of similarity, utility or agreement
# does: an example that is less like the request than is typical, or that others contradict, is not
# expected to help because typical ones do.
_GAIN, _SLOPE = 0.5, 0.8


class Featurizer:
    """Turns a request into the context vector x, FP32 [d].

    Attributes:
        statistics: by which contexts are made; replaced as a whole by :meth:`adopt`.
    """

    def __init__(self) -> None:
        self.statistics = RequestStatistics.none()
        self._earlier: dict[int, RequestStatistics] = {0: self.statistics}

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
        statistics: RequestStatistics | None = None,
    ) -> NDArray[np.float32]:
        """The contexts of several requests, FP32 [n, d].

        Args:
            texts: the requests' transcripts.
            embeddings: FP32 [D] each; for None the components are zero.
            examples: those that are selected for each request.
            statistics: by which they are made; None: the present ones.
        """
        statistics = statistics or self.statistics
        x = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        rows = zip(texts, examples, strict=True)
        x[:, : len(SCALARS)] = [_scalars(text, chosen, statistics) for text, chosen in rows]
        embedded = [k for k, e in enumerate(embeddings) if e is not None]
        if embedded:
            vectors = np.stack([e for e in embeddings if e is not None])
            # Of another embedding model's the statistics say nothing.
            if vectors.shape[1:] == statistics.mean.shape:
                end = len(SCALARS) + len(statistics.components)
                x[embedded, len(SCALARS) : end] = statistics.project(vectors)
        return x

    def adopt(self, statistics: RequestStatistics) -> NDArray[np.float64]:
        """Make contexts by newer statistics from now on.

        Returns:
            By which the former contexts follow from the new ones, FP64 [d, d].
        """
        former, self.statistics = self.statistics, statistics
        self._earlier[statistics.version] = statistics
        while len(self._earlier) > _KEPT_VERSIONS:
            del self._earlier[min(self._earlier)]
        return _between(statistics, former)

    @property
    def versions(self) -> list[RequestStatistics]:
        """The statistics that are known, oldest first."""
        return [self._earlier[version] for version in sorted(self._earlier)]

    def reset(self, versions: Sequence[RequestStatistics]) -> None:
        """Know these statistics and no others, and make contexts by the newest."""
        self._earlier = {s.version: s for s in versions or [RequestStatistics.none()]}
        self.statistics = self._earlier[max(self._earlier)]

    def convert(self, x: NDArray[np.float32], version: int) -> NDArray[np.float32]:
        """A context as the present statistics would have made it, as far as can be told.

        Args:
            x: FP32 [d] or [n, d].
            version: that of the statistics by which it was made.
        """
        if version == self.statistics.version:
            return x
        # Of a version that is not known any more the principal components say nothing.
        former = self._earlier.get(version, RequestStatistics.none())
        converted = x.astype(np.float64) @ _between(former, self.statistics).T
        return np.asarray(converted, dtype=np.float32)

    def prior(self, llm: LLMSettings, quality: float, ratings: float) -> GaussianWeights:
        """The weights of an LLM's quality before any evidence.

        Args:
            quality: what is expected of its answers, in (0, 1).
            ratings: how many ratings that is worth.
        """
        sees = llm.takes_examples
        # A rating's information about the log-odds is q (1 - q).
        level = (ratings * quality * (1.0 - quality)) ** -0.5
        of_examples = [_SEEN if sees else _UNSEEN] * (len(SCALARS) - 3)
        components = [_COMPONENT] * NUM_COMPONENTS
        deviations = np.array([level, level, _LENGTH, *of_examples, *components])
        mean = np.zeros(DIMENSION)
        mean[:2] = logit(quality)
        if sees:
            telling = [_SIMILARITIES[0], _UTILITY, _AGREEMENT]
            deviations[telling] = _TELLING
            mean[telling] = _SLOPE
            mean[HAS_EXAMPLES] += _GAIN
        prior = GaussianWeights.independent(mean, deviations)
        if not sees:
            prior.covariance[0, 1] = prior.covariance[1, 0] = _ALIKE * level**2
        return prior


def _scalars(
    text: str, examples: Sequence[Selected], statistics: RequestStatistics
) -> tuple[float, ...]:
    """The elements named in ``SCALARS``; in plain Python, since they are few."""
    length = 0.0  # before it is known what lengths are typical
    if statistics.version:
        length = _cut((math.log1p(len(text)) - statistics.log_lengths[1]) / _deviation(statistics))
    if not examples:
        return (1.0, 0.0, length, *(0.0,) * (len(SCALARS) - 3))
    ranked = sorted(examples, key=lambda e: (-e.similarity, e.id))
    similarities = [e.similarity for e in ranked]
    typical, per_step = statistics.nearest[1], 1.0 / _step(statistics)
    margin = similarities[0] - similarities[1] if len(similarities) > 1 else 0.0
    return (
        0.0,
        1.0,
        length,
        _cut((similarities[0] - typical) * per_step),
        _cut((sum(similarities) / len(similarities) - typical) * per_step),
        _cut(margin * per_step),
        _cut((logit(max(e.utility for e in examples)) - 1.4) / 2.0),
        _cut(len(examples) / 2.0 - 1.0),
        _overlap(_bitmap(last_turn(text)), _example_bitmap(ranked[0].request)) - 0.5,
        sum(e.agreement for e in examples) / len(examples),
    )


def _deviation(statistics: RequestStatistics) -> float:
    """Standard deviation of the lengths' logarithms, by their deciles."""
    low, _, high = statistics.log_lengths
    return max((high - low) / 2.56, 0.1)


def _step(statistics: RequestStatistics) -> float:
    """A typical difference between two requests' similarity to their nearest examples."""
    low, _, high = statistics.nearest
    return max(high - low, 0.02)


def _cut(value: float) -> float:
    return min(_MOST, max(-_MOST, value))


def _between(source: RequestStatistics, target: RequestStatistics) -> NDArray[np.float64]:
    """By which contexts of ``target`` follow from those of ``source``, FP64 [d, d].

    What the source's principal components do not hold of a request is taken to be average. That a
    feature may have been cut is not considered.
    """
    T = np.eye(DIMENSION)
    scale = _step(source) / _step(target)
    for k in _SIMILARITIES:
        T[k, k] = scale
        T[k, HAS_EXAMPLES] = (source.nearest[1] - target.nearest[1]) / _step(target)
    T[_MARGIN, _MARGIN] = scale
    T[_LOG_LENGTH] = 0.0
    if source.version and target.version:
        T[_LOG_LENGTH, _LOG_LENGTH] = _deviation(source) / _deviation(target)
        # One of the first two elements is 1, so that together they are the constant.
        T[_LOG_LENGTH, :2] = (source.log_lengths[1] - target.log_lengths[1]) / _deviation(target)
    first = len(SCALARS)
    T[first:, first:] = 0.0
    k, m = len(target.components), len(source.components)
    if source.mean.shape == target.mean.shape:
        P, Q = target.components.astype(np.float64), source.components.astype(np.float64)
        T[first : first + k, first : first + m] = P @ Q.T * (source.scale / target.scale)
        shift = P @ (source.mean - target.mean) / target.scale
        T[first : first + k, :2] = shift[:, None]
    return T


def _bitmap(text: str) -> int:
    """The set of a text's words as bits of a number; two words hardly ever share a bit."""
    bitmap = 0
    for word in words_of(text):
        bitmap |= 1 << (hash_word(word) & _BITMAP_MASK)
    return bitmap


@lru_cache(maxsize=16_384)
def _example_bitmap(request: str) -> int:
    """That of what is answered; the same examples are found again and again."""
    return _bitmap(last_turn(request))


def _overlap(a: int, b: int) -> float:
    """Jaccard index of two bitmaps."""
    either = (a | b).bit_count()
    return (a & b).bit_count() / either if either else 0.0
