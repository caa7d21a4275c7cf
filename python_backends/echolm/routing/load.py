"""Serving load, and the bias it puts on dear LLMs (paper, appendix)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class LoadTracker:
    """Requests in flight per LLM, smoothed by an exponential moving average.

    Args:
        half_life_s: time after which an old load counts half.
        clock: seconds, monotonic.
    """

    def __init__(
        self, half_life_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight: dict[str, int] = {}
        self._average: dict[str, tuple[float, float]] = {}

    @contextmanager
    def serving(self, llm: str) -> Iterator[None]:
        """Count one request to the LLM for the duration of the block."""
        self._change(llm, +1)
        try:
            yield
        finally:
            self._change(llm, -1)

    def _change(self, llm: str, step: int) -> None:
        with self._lock:
            self._average[llm] = (self._now(llm), self._clock())
            self._in_flight[llm] = self._in_flight.get(llm, 0) + step

    def _now(self, llm: str) -> float:
        average, at = self._average.get(llm, (0.0, self._clock()))
        keep: float = 0.5 ** ((self._clock() - at) / self._half_life_s)
        return keep * average + (1 - keep) * self._in_flight.get(llm, 0)

    def in_flight(self, llm: str) -> int:
        """Requests that the LLM is serving now."""
        with self._lock:
            return self._in_flight.get(llm, 0)

    def load(self, llm: str) -> float:
        """Smoothed number of requests in flight."""
        with self._lock:
            return self._now(llm)


def load_bias(
    load: float, threshold: float, relative_cost: float, scale: float, gain: float
) -> float:
    """lambda_0 * tanh(gamma * max(0, load - threshold)) * cost: 0 while load is moderate."""
    return scale * math.tanh(gain * max(0.0, load - threshold)) * relative_cost
