"""Pieces of a stream on their way: few messages, none of them late."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Gatherer(Generic[T]):
    """Sends the first piece at once, and then what gathers within an interval as one piece.

    A message through Triton costs more than all else that is done for a piece. A piece that comes
    later than the interval after the last message goes out at once, so that those of a slow LLM are
    not delayed. Belongs to one stream; may be called from several threads.

    Args:
        send: gets what goes out; one call at a time.
        join: makes one piece of several.
        interval_s: time for which pieces gather, in seconds; with 0 each goes out by itself.
        call_later: calls a function after so many seconds, in any thread.
        clock: the time in seconds.
    """

    def __init__(
        self,
        send: Callable[[T], object],
        join: Callable[[Sequence[T]], T],
        interval_s: float,
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._join = join
        self._interval_s = interval_s
        self._call_later = call_later
        self._clock = clock
        self._gathered: list[T] = []
        self._lock = threading.Lock()
        self._over_at = -math.inf  # when the interval ends
        self._called_later = False
        self._problem: Exception | None = None  # of sending at an interval's end

    def __call__(self, piece: T) -> None:
        """Take the next piece; raises what ``send`` raises, now or at an interval's end before."""
        with self._lock:
            self._gathered.append(piece)
            if self._called_later:
                return
            # Few pieces wait where they come from another gatherer, so no timer is set before.
            wait_s = self._over_at - self._clock()
            if wait_s > 0:
                self._called_later = True
                self._call_later(wait_s, self._interval_over)
            else:
                self._send_gathered()

    def flush(self) -> None:
        """Send what has gathered, since there is no more to wait for; raises as a call does."""
        with self._lock:
            self._send_gathered()

    def drop(self) -> None:
        """Forget what has gathered, since nobody wants it."""
        with self._lock:
            self._gathered.clear()

    def _send_gathered(self) -> None:
        if self._problem is not None:
            raise self._problem
        # Forgotten first: what cannot be sent once is not sent later, out of turn.
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._send(gathered[0] if len(gathered) == 1 else self._join(gathered))
            self._over_at = self._clock() + self._interval_s

    def _interval_over(self) -> None:
        with self._lock:
            self._called_later = False
            try:
                self._send_gathered()
            except Exception as problem:  # The stream must not go on with a gap.
                self._problem = problem
