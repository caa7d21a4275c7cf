"""How many requests each LLM is serving, now and smoothed over time."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Requests in flight to one LLM.

    Attributes:
        average: exponential moving average of ``in_flight`` as it was at the time ``at``.
        at: time of the last change, in seconds of the clock.
    """

    in_flight: int = 0
    average: float = 0.0
    at: float = -math.inf

    def smoothed(self, now: float, half_life_s: float) -> float:
        """The average now, if ``in_flight`` has stayed as it is since ``at``."""
        keep: float = 0.5 ** (max(0.0, now - self.at) / half_life_s)
        return keep * self.average + (1.0 - keep) * self.in_flight


class ServingLoad(ABC):
    """Counts requests in flight to each LLM.

    :class:`LoadTracker` counts those of one process, and
    :class:`echolm.load.table.LoadTable` those of all processes of a machine.
    """

    @contextmanager
    def serving(self, llm: str) -> Iterator[None]:
        """Count one request to the LLM for the duration of the block."""
        self.change(llm, +1)
        try:
            yield
        finally:
            self.change(llm, -1)

    @abstractmethod
    def change(self, llm: str, step: int) -> Count:
        """Count requests that begin (+) or end (-); this process' new count for the LLM."""

    @abstractmethod
    def in_flight(self, llm: str) -> int:
        """Requests that the LLM is serving now."""

    @abstractmethod
    def load(self, llm: str) -> float:
        """Smoothed number of requests in flight."""


class LoadTracker(ServingLoad):
    """The load that this process causes. Several threads may use it.

    Args:
        half_life_s: seconds after which an old load counts half.
        clock: gives seconds that never go back.
    """

    def __init__(
        self, half_life_s: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[str, Count] = {}

    def change(self, llm: str, step: int) -> Count:
        with self._lock:
            now, old = self._clock(), self.count(llm)
            average = old.smoothed(now, self._half_life_s)
            self._counts[llm] = count = Count(old.in_flight + step, average, now)
            return count

    def count(self, llm: str) -> Count:
        """The LLM's count as of its last change."""
        return self._counts.get(llm, Count())

    def in_flight(self, llm: str) -> int:
        return self.count(llm).in_flight

    def load(self, llm: str) -> float:
        return self.count(llm).smoothed(self._clock(), self._half_life_s)
