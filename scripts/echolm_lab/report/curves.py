"""Figures made of sequences of scores: ranking, learning, recovery, spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """P(a positive one's value exceeds a negative one's), ties half; NaN where one is missing."""
    if not positive or not negative:
        return float("nan")
    high, low = np.asarray(positive), np.sort(np.asarray(negative))
    below = np.searchsorted(low, high, side="left")
    equal = np.searchsorted(low, high, side="right") - below
    return float((below + 0.5 * equal).mean() / len(low))


def rolling(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Mean of the last ``window`` values at each place, of fewer at the start: FP64 [n]."""
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def ratings_until(
    scores: Sequence[float], ratings: Sequence[int], level: float, window: int
) -> int | None:
    """Ratings that had been given when a window's mean first reached ``level``; None if never.

    Args:
        scores: of all requests in order.
        ratings: how many ratings had been given before each request.
    """
    requests = recovered_after(scores, level, window)
    return None if requests is None else int(ratings[requests - 1])


def recovered_after(scores: Sequence[float], level: float, window: int) -> int | None:
    """Requests until a window's mean reaches ``level`` for the first time; None if never.

    The window counts: it is of answers that were given within that many requests.
    """
    smooth = rolling(scores, window)[window - 1 :]
    reached = np.flatnonzero(smooth >= level - 1e-9)
    return int(reached[0]) + window if len(reached) else None
