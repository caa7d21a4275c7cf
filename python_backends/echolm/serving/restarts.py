"""How soon something that ended by itself is started again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Backoff:
    """Pauses before the next starts of one thing; twice as long after each early end.

    Something that ran well for long enough has earned a quick start again, however often it has
    ended in its life.

    Attributes:
        first_s, longest_s: the pause after an early end that follows on another, and the longest
            one. After a good run there is none.
        good_run_s: from which time on a run counts as good.
        most: starts without a good run in between; None: without end.
    """

    first_s: float = 0.5
    longest_s: float = 60.0
    good_run_s: float = 60.0
    most: int | None = None
    _starts: int = 0
    _pause_s: float = 0.0

    def after(self, run_s: float) -> float | None:
        """Seconds to wait after a run of ``run_s``; None: it is not worth another start."""
        if run_s >= self.good_run_s:
            self._starts, self._pause_s = 0, 0.0
        if self._starts == self.most:
            return None
        pause_s = self._pause_s
        self._starts += 1
        self._pause_s = min(max(2 * pause_s, self.first_s), self.longest_s)
        return pause_s
