"""A learning log in memory, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from echolm.clock import now_ms
from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event, SavedSnapshot, TrimmedError, encode_body


class MemoryEventLog:
    """An :class:`echolm.learning.event_log.EventLog` that forgets all at the process's end.

    Attributes:
        available: while it is False, every call fails as if the log were out of reach.
    """

    def __init__(self, now_ms: Callable[[], int] = now_ms) -> None:
        self.available = True
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._rows: list[tuple[bytes, bytes, int]] = []
        self._removed = 0
        self._snapshots: dict[str, tuple[str, bytes, int]] = {}
        self._leased: dict[str, tuple[str, float]] = {}

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        return self.append_raw(kind, encode_body(body).encode())

    def append_raw(self, kind: str, body: bytes) -> str:
        """Append an event whose body is this, be it JSON or not."""
        with self._used():
            self._rows.append((kind.encode(), body, self._now_ms()))
            return str(self._removed + len(self._rows))

    def read(self, after: str, limit: int) -> list[Event]:
        with self._used():
            first = self._removed if after == START else int(after)
            if first < self._removed:
                raise TrimmedError(f"learning log in memory: events behind {after} were removed")
            start = first - self._removed
            rows = self._rows[start : start + limit]
        return [Event.decoded(str(first + i), *row) for i, row in enumerate(rows, start=1)]

    def trim(self, before_ms: int, taken_in: Sequence[str]) -> int:
        with self._used():
            young = (k for k, (_, _, at_ms) in enumerate(self._rows) if at_ms >= before_ms)
            old = next(young, len(self._rows))
            number = max(0, min(old, min(map(int, taken_in)) - self._removed))
            del self._rows[:number]
            self._removed += number
        return number

    def save_snapshot(self, name: str, position: str, state: bytes, replaces: str = START) -> bool:
        with self._used():
            if self._snapshots.get(name, (START,))[0] != replaces:
                return False
            self._snapshots[name] = (position, state, self._now_ms())
        return True

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        with self._used():
            snapshot = self._snapshots.get(name)
        return snapshot and snapshot[:2]

    def snapshots(self) -> list[SavedSnapshot]:
        with self._used():
            return [SavedSnapshot(n, p, at_ms) for n, (p, _, at_ms) in self._snapshots.items()]

    def drop_snapshot(self, name: str) -> None:
        with self._used():
            self._snapshots.pop(name, None)

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        now = time.monotonic()
        with self._used():
            holder, until = self._leased.get(name, (owner, now))
            if holder != owner and until > now:
                return False
            self._leased[name] = (owner, now + seconds)
            return True

    def close(self) -> None:
        self.available = False

    @contextmanager
    def _used(self) -> Iterator[None]:
        if not self.available:
            raise UnavailableError("learning log in memory: out of reach; try again")
        with self._lock:
            yield
