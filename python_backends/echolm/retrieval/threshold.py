"""How useful an example must be to be worth its tokens (paper §4.1).

The paper samples requests, compares the efficiency under several thresholds and adopts the best.
Here a share of requests is served under a threshold drawn from a grid. Examples under it are
dropped after the selection, so all thresholds between two neighbouring utilities lead to the same
selection. Its rating counts for each of them, weighted by the inverse probability that one of them
was drawn.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.record import ThresholdDraw, read_rating, remember

GRID: tuple[float, ...] = tuple(round(0.05 * k, 2) for k in range(20))
"""The thresholds that are compared; 0 drops nothing."""

_VERSION = 1  # raised whenever the algorithm makes another state of the same events
_REMEMBERED = 50_000  # most ratings that can still be replaced by a later one
_LEAST_MARGIN = 0.002  # least gain in value per request that is worth a change
_LEAST_COMPARED = 6.0  # ratings in which two thresholds must have differed before a change
_SURENESS = 2.5  # standard errors of the lead that it takes: much, since 19 challengers always try


def nearest(threshold: float) -> int:
    """Index in the grid of the threshold that is nearest to this one."""
    return int(np.argmin(np.abs(np.array(GRID) - threshold)))


class _Learned(NamedTuple):
    """A rating that was learnt.

    Attributes:
        value: the score, less the cost of the LLM and the price of example tokens.
        centred: the value's distance to the mean at that time.
        updated: the threshold's ``updates`` when it was learnt.
    """

    value: float
    centred: float
    updated: int


class AdaptiveThreshold:
    """Follows the best threshold. Value = score - cost of the LLM - price of example tokens.

    For each pair of thresholds the mean difference in value is estimated from the ratings of
    requests for which the two would have selected different examples; a rating that counts for
    both cancels out. The adopted threshold is replaced when another one is surely ahead.

    Args:
        start: the threshold before any rating; the grid's nearest one is taken.
        exploration: share of requests that are served under a threshold drawn at random.
        costs: what an answer of each LLM costs, in quality.
        price_per_1k_tokens: what 1,000 tokens of examples cost, in quality.
        discount: weight that the past keeps at each rating, in (0, 1].

    Attributes:
        current: index in :data:`GRID` of the adopted threshold.
        updates: number of ratings seen; each is a step of forgetting.
    """

    name = "threshold"
    kinds = frozenset({RATING})

    def __init__(
        self,
        start: float,
        exploration: float,
        costs: Mapping[str, float],
        price_per_1k_tokens: float,
        discount: float = 0.998,
    ) -> None:
        self._exploration = exploration
        self._costs = dict(costs)
        self._price = price_per_1k_tokens
        self._discount = discount
        self.current = nearest(start)
        self.updates = 0
        self._weight = self._mean = 0.0
        # [a, b]: sums over ratings of (a's weight - b's weight) * value, its square, and how
        # many ratings told a from b; discounted.
        self._difference, self._square, self._compared = np.zeros((3, len(GRID), len(GRID)))
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        configuration = {"version": _VERSION, "grid": list(GRID), "start": self.current}
        configuration |= {"costs": self._costs, "price": self._price, "discount": discount}
        self.fingerprint = fingerprint(configuration)

    @property
    def value(self) -> float:
        """The adopted threshold."""
        return GRID[self.current]

    def draw(self, rng: np.random.Generator) -> int:
        """Index in :data:`GRID` of the threshold for one request."""
        if rng.random() < self._exploration:
            return int(rng.integers(len(GRID)))
        return self.current

    def stands_for(self, drawn: int, utilities: Sequence[float]) -> ThresholdDraw:
        """All thresholds that keep the same candidates as ``GRID[drawn]``, by their utilities."""
        t = GRID[drawn]
        dropped = max([u for u in utilities if u < t], default=-1.0)
        kept = min([u for u in utilities if u >= t], default=math.inf)
        low, high = bisect_right(GRID, dropped), bisect_right(GRID, kept) - 1
        probability = self._exploration * (high - low + 1) / len(GRID)
        if low <= self.current <= high:
            probability += 1.0 - self._exploration
        return ThresholdDraw(low, high, probability)

    def apply(self, event: Event) -> None:
        """Learn from a rating, if its selection says which thresholds it stands for."""
        rated = read_rating(event.body)
        if rated is None or rated.record.draw is None:
            return
        request_id, score, record = rated
        draw = rated.record.draw
        if draw.high >= len(GRID):
            raise ValueError(f"expected thresholds up to {len(GRID) - 1}, got {draw.high}")
        value = score - self._costs[event.body["llm"]] - self._price * sum(record.tokens) / 1_000
        inside = np.zeros(len(GRID))
        inside[draw.low : draw.high + 1] = 1.0 / draw.probability
        signed = inside[:, None] - inside[None, :]
        earlier = self._learned.get(request_id)
        if earlier is None:
            learned = self._learn(signed, value)
        else:
            learned = self._replace(signed, earlier, value)
        remember(self._learned, request_id, learned, _REMEMBERED)
        self._adopt()

    def _learn(self, signed: NDArray[np.float64], value: float) -> _Learned:
        keep = self._discount
        self.updates += 1
        # Centring on the mean so far keeps the noise of the common level out of differences.
        centred = value - self._mean if self._weight > 0 else 0.0
        self._weight = keep * self._weight + 1.0
        self._mean += (value - self._mean) / self._weight
        self._difference = keep * self._difference + signed * centred
        self._square = keep * self._square + (signed * centred) ** 2
        self._compared = keep * self._compared + (signed != 0.0)
        return _Learned(value, centred, self.updates)

    def _replace(self, signed: NDArray[np.float64], earlier: _Learned, value: float) -> _Learned:
        kept = self._discount ** (self.updates - earlier.updated)
        centred = earlier.centred + value - earlier.value
        self._difference = self._difference + kept * signed * (centred - earlier.centred)
        self._square = self._square + kept * signed**2 * (centred**2 - earlier.centred**2)
        self._mean += kept * (value - earlier.value) / self._weight
        return _Learned(value, centred, earlier.updated)

    def _adopt(self) -> None:
        """Adopt another threshold if it is surely worth more per request than the adopted one."""
        n = max(self._weight, 1.0)
        mean = self._difference[:, self.current] / n
        variance = np.maximum(self._square[:, self.current] / n - mean**2, 0.0)
        surely = mean - _SURENESS * np.sqrt(variance / n)
        surely[self._compared[:, self.current] < _LEAST_COMPARED] = -np.inf
        best = int(np.argmax(surely))
        if surely[best] > _LEAST_MARGIN:
            self.current = best

    def state(self) -> dict[str, Any]:
        """The adopted threshold and all sums."""
        return {
            "current": self.current,
            "updates": self.updates,
            "weight": self._weight,
            "mean": self._mean,
            "difference": self._difference,
            "square": self._square,
            "compared": self._compared,
            "learned": [[key, *rating] for key, rating in self._learned.items()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`; ValueError if its grid is another one."""
        sums = [np.array(state[k], np.float64) for k in ("difference", "square", "compared")]
        current = int(state["current"])
        if any(s.shape != self._square.shape for s in sums) or not 0 <= current < len(GRID):
            raise ValueError(f"threshold: expected sums of {self._square.shape}")
        learned = OrderedDict((key, _Learned(*rest)) for key, *rest in state["learned"])
        self._difference, self._square, self._compared = sums
        self.current, self.updates = current, int(state["updates"])
        self._weight, self._mean = float(state["weight"]), float(state["mean"])
        self._learned = learned
