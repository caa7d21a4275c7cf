"""A learning log in memory, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event, decode_body, encode_body


class MemoryEventLog:
    """An :class:`echolm.learning.event_log.EventLog` that forgets all at the process's end.

    Attributes:
        available: while it is False, every call fails as if the log were out of reach.
    """

    def __init__(self) -> None:
        self.available = True
        self._lock = threading.Lock()
        self._rows: list[tuple[str, bytes, int]] = []
        self._snapshots: dict[str, tuple[str, bytes]] = {}
        self._leased: dict[str, tuple[str, float]] = {}

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        return self.append_raw(kind, encode_body(body).encode())

    def append_raw(self, kind: str, body: bytes) -> str:
        """Append an event whose body is this, be it JSON or not."""
        self._check()
        with self._lock:
            self._rows.append((kind, body, time.time_ns() // 1_000_000))
            return str(len(self._rows))

    def read(self, after: str, limit: int) -> list[Event]:
        self._check()
        first = 0 if after == START else int(after)
        with self._lock:
            rows = self._rows[first : first + limit]
        return [
            Event(str(first + i), kind, decode_body(body), at_ms)
            for i, (kind, body, at_ms) in enumerate(rows, start=1)
        ]

    def save_snapshot(self, name: str, position: str, state: bytes) -> None:
        self._check()
        self._snapshots[name] = (position, state)

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        self._check()
        return self._snapshots.get(name)

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        self._check()
        now = time.monotonic()
        with self._lock:
            holder, until = self._leased.get(name, (owner, now))
            if holder != owner and until > now:
                return False
            self._leased[name] = (owner, now + seconds)
            return True

    def close(self) -> None:
        self.available = False

    def _check(self) -> None:
        if not self.available:
            raise UnavailableError("learning log in memory: out of reach; try again")
