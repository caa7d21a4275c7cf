"""How relevant an example is by its cosine, relative to what this service's requests look like.

Where one embedding model puts requests of one intent at a cosine of 0.95, another puts them at
0.65. What can be told without ratings are three points: the cosine of unrelated requests, that of a
request's nearest example, and 1, which is the same request again. Between them relevance is linear,
and ratings correct it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echolm.learning.logistic import logit
from echolm.learning.request_statistics import RequestStatistics

# As shares of the way from unrelated requests to the same request again. Nearest examples that are
# not even so near are not taken to be relevant, since perhaps nothing relevant is stored. And of a
# service where nearly all requests repeat, a paraphrase is as good as a repetition.
_LEAST_TYPICAL, _MOST_TYPICAL = 0.6, 0.85
_LEAST_WIDTH = 0.02

# Log-odds that an example is the right one, where unrelated requests end and at a typical nearest
# example. On three public sets (banking, shell commands, a generated workload) 18 to 30% and 80 to
# 90% of the nearest examples had the request's intent there.
_AT_FLOOR, _AT_TYPICAL = -1.5, 1.8
_SAME = 0.7  # relevance from which two requests count as the same


@dataclass(frozen=True)
class SimilarityScale:
    """A scale of cosines on which 0 is where unrelated requests end, and 1 a typical nearest one.

    Attributes:
        floor, typical: the cosines of 0 and 1.
    """

    floor: float
    typical: float

    @classmethod
    def of(cls, statistics: RequestStatistics) -> SimilarityScale:
        """The scale of a service."""
        unrelated, far, _ = statistics.unrelated
        whole = max(1.0 - unrelated, _LEAST_WIDTH)
        typical = (statistics.nearest[1] - unrelated) / whole
        typical = min(_MOST_TYPICAL, max(_LEAST_TYPICAL, typical))
        # Of a service with few intents, random pairs of requests are often related.
        floor = min((far - unrelated) / whole, typical / 2.0)
        return cls(unrelated + floor * whole, unrelated + typical * whole)

    def position(self, cosines: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines on this scale, elementwise; unbounded."""
        return np.asarray((cosines - self.floor) * (1.0 / (self.typical - self.floor)))

    @property
    def same(self) -> float:
        """The cosine from which two requests count as the same."""
        position = (logit(_SAME) - _AT_FLOOR) / (_AT_TYPICAL - _AT_FLOOR)
        return self.floor + position * (self.typical - self.floor)


def relevance(positions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probability that an example is the right one, before any rating, elementwise.

    Args:
        positions: on a :class:`SimilarityScale`.
    """
    log_odds = _AT_FLOOR + (_AT_TYPICAL - _AT_FLOOR) * np.minimum(np.maximum(positions, -10), 10)
    return np.asarray(1.0 / (1.0 + np.exp(-log_odds)), dtype=np.float32)
