"""The time of examples and events."""

from __future__ import annotations

import time


def now_ms() -> int:
    """Milliseconds since the epoch, by the machine's clock, which may jump."""
    return time.time_ns() // 1_000_000
