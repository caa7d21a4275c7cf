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
from echolm.learning.feedback import PREFERENCE, RATING, Rating, read_feedback
from echolm.learning.forgetting import Forgetting
from echolm.learning.snapshot import fingerprint
from echolm.retrieval.record import SelectionRecord, ThresholdDraw, remember, selection_of

GRID: tuple[float, ...] = tuple(round(0.05 * k, 2) for k in range(20))
"""The thresholds that are compared; 0 drops nothing."""

_VERSION = 2  # raised whenever the algorithm makes another state of the same events
_REMEMBERED = 50_000  # most answers of which feedback can still be replaced by later feedback
_LEAST_KEPT = 500.0  # ratings whose weight is kept, however old they are
_LEAST_MARGIN = 0.002  # least gain in value per request that is worth a change
_LEAST_COMPARED = 6.0  # ratings in which two thresholds must have differed before a change
_SURENESS = 3.5  # standard errors of the lead that it takes: much, since 19 challengers always try


def nearest(threshold: float) -> int:
    """Index in the grid of the threshold that is nearest to this one."""
    return int(np.argmin(np.abs(np.array(GRID) - threshold)))


class _Learned(NamedTuple):
    """Feedback that was learnt.

    Attributes:
        value: the score, less the cost of the LLM and the price of example tokens.
        centred: the value's distance to the mean at that time.
        decay: what was left then of feedback from the start.
        rank: of its kind; see :mod:`echolm.learning.feedback`.
    """

    value: float
    centred: float
    decay: float
    rank: int


class AdaptiveThreshold:
    """Follows the best threshold. Value = score - cost of the LLM - price of example tokens.

    For each pair of thresholds the mean difference in value is estimated from the ratings of
    requests for which the two would have selected different examples; a rating that counts for
    both cancels out. The adopted threshold is replaced when another one is surely ahead.

    A comparison counts as ratings of both answers, around the middle of the qualities that were
    expected of them and as far apart as it says.

    Args:
        start: the threshold before any rating; the grid's nearest one is taken.
        exploration: share of requests that are served under a threshold drawn at random.
        costs: what an answer of each LLM costs, in quality.
        price_per_1k_tokens: what 1,000 tokens of examples cost, in quality.
        half_life_ms: time in which feedback loses half of its weight.

    Attributes:
        current: index in :data:`GRID` of the adopted threshold.
        updates: number of answers of which feedback was learnt.
    """

    name = "threshold"
    kinds = frozenset({RATING, PREFERENCE})

    def __init__(
        self,
        start: float,
        exploration: float,
        costs: Mapping[str, float],
        price_per_1k_tokens: float,
        half_life_ms: float,
    ) -> None:
        self._exploration = exploration
        self._costs = dict(costs)
        self._price = price_per_1k_tokens
        self._forgetting = Forgetting(half_life_ms, _LEAST_KEPT)
        self.current = nearest(start)
        self.updates = 0
        self._weight = self._mean = 0.0
        # [a, b]: sums over ratings of (a's weight - b's weight) * value, its square, and how
        # many ratings told a from b; discounted.
        self._difference, self._square, self._compared = np.zeros((3, len(GRID), len(GRID)))
        self._learned: OrderedDict[str, _Learned] = OrderedDict()
        configuration = {"version": _VERSION, "grid": list(GRID), "start": self.current}
        configuration |= {"costs": self._costs, "price": self._price}
        self.fingerprint = fingerprint(configuration | self._forgetting.configuration)

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
        """Learn from feedback on answers whose selection says which thresholds it stands for."""
        feedback = read_feedback(event)
        if isinstance(feedback, Rating):
            rows = [(feedback.request_id, feedback.answer, feedback.score, feedback.asked)]
        else:
            expected = [float(answer["quality"]) for answer in feedback.answers]
            scores = scores_of_comparison(feedback.share, *expected)
            columns = (feedback.request_ids, feedback.answers, scores, feedback.asked)
            rows = list(zip(*columns, strict=True))
        # What an LLM that was not routed to makes of a selection says nothing of thresholds.
        # All rows are read before the first one changes anything.
        taught = [
            (id, *self._observed(selection.draw, selection, answer, score))
            for id, answer, score, asked in rows
            if not asked
            and (selection := selection_of(answer)) is not None
            and selection.draw is not None
        ]
        if not taught:
            return
        self._forget(event.at_ms)
        for id, signed, value in taught:
            earlier = self._learned.get(id)
            if earlier is None:
                learned = self._learn(signed, value, feedback.rank)
            elif earlier.rank <= feedback.rank:
                learned = self._replace(signed, earlier, value)._replace(rank=feedback.rank)
            else:
                continue
            remember(self._learned, id, learned, _REMEMBERED)
        self._adopt()

    def _observed(
        self,
        draw: ThresholdDraw,
        selection: SelectionRecord,
        answer: Mapping[str, Any],
        score: float,
    ) -> tuple[NDArray[np.float64], float]:
        """How much more an answer counts for one threshold than for another, and its value."""
        if draw.high >= len(GRID):
            raise ValueError(f"expected thresholds up to {len(GRID) - 1}, got {draw.high}")
        price = self._price * sum(selection.tokens) / 1_000
        inside = np.zeros(len(GRID))
        inside[draw.low : draw.high + 1] = 1.0 / draw.probability
        return inside[:, None] - inside[None, :], score - self._costs[answer["llm"]] - price

    def _forget(self, now_ms: int) -> None:
        keep = self._forgetting.step(now_ms)
        if keep < 1.0:
            self._weight *= keep
            self._difference = keep * self._difference
            self._square = keep * self._square
            self._compared = keep * self._compared

    def _learn(self, signed: NDArray[np.float64], value: float, rank: int) -> _Learned:
        self.updates += 1
        # Centring on the mean so far keeps the noise of the common level out of differences.
        centred = value - self._mean if self._weight > 0 else 0.0
        self._weight += 1.0
        self._forgetting.kept += 1.0
        self._mean += (value - self._mean) / self._weight
        self._difference = self._difference + signed * centred
        self._square = self._square + (signed * centred) ** 2
        self._compared = self._compared + (signed != 0.0)
        return _Learned(value, centred, self._forgetting.decay, rank)

    def _replace(self, signed: NDArray[np.float64], earlier: _Learned, value: float) -> _Learned:
        kept = self._forgetting.decay / earlier.decay
        centred = earlier.centred + value - earlier.value
        self._difference = self._difference + kept * signed * (centred - earlier.centred)
        self._square = self._square + kept * signed**2 * (centred**2 - earlier.centred**2)
        self._mean += kept * (value - earlier.value) / self._weight
        return earlier._replace(value=value, centred=centred)

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
            "forgetting": self._forgetting.state(),
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
        self._forgetting.restore(state["forgetting"])
        self._difference, self._square, self._compared = sums
        self.current, self.updates = current, int(state["updates"])
        self._weight, self._mean = float(state["weight"]), float(state["mean"])
        self._learned = learned


def scores_of_comparison(share: float, first: float, second: float) -> tuple[float, float]:
    """Scores of two answers that say what a comparison of them says, in 0..1.

    A comparison shows how far the answers are apart and not how good they are. They are expected to
    be twice as far apart as the share lies from a tie, around the middle of what was expected; both
    are moved alike where one would leave 0..1.

    Args:
        share: what the first answer won.
        first, second: the qualities that were expected of them.
    """
    half = share - 0.5
    middle = min(1.0 - abs(half), max(abs(half), (first + second) / 2.0))
    return middle + half, middle - half
