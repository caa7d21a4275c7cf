"""How many requests each LLM is serving, now and smoothed over time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


class ServingLoad(Protocol):
    """Counts requests in flight to each LLM.

    :class:`LoadTracker` counts those of one process, and
    :class:`echolm.load.table.LoadTable` those of all processes of a machine.
    """

    def serving(self, llm: str) -> AbstractContextManager[None]:
        """Count one request to the LLM for the duration of the block."""
        ...

    def in_flight(self, llm: str) -> int:
        """Requests that the LLM is serving now."""
        ...

    def load(self, llm: str) -> float:
        """Smoothed number of requests in flight."""
        ...


@dataclass(frozen=True)
class Count:
    """Requests in flight to one LLM.

    Attributes:
        in_flight: requests that are being served.
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


class LoadTracker:
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

    @contextmanager
    def serving(self, llm: str) -> Iterator[None]:
        """Count one request to the LLM for the duration of the block."""
        self.change(llm, +1)
        try:
            yield
        finally:
            self.change(llm, -1)

    def change(self, llm: str, step: int) -> Count:
        """Count requests that begin (+) or end (-), and return the LLM's new count."""
        with self._lock:
            now, old = self._clock(), self._counts.get(llm, Count())
            average = old.smoothed(now, self._half_life_s)
            self._counts[llm] = count = Count(old.in_flight + step, average, now)
            return count

    def count(self, llm: str) -> Count:
        """The LLM's count as of its last change."""
        return self._counts.get(llm, Count())

    def in_flight(self, llm: str) -> int:
        """Requests that the LLM is serving now."""
        return self.count(llm).in_flight

    def load(self, llm: str) -> float:
        """Smoothed number of requests in flight."""
        return self.count(llm).smoothed(self._clock(), self._half_life_s)
