"""The learning log: append only, read by every process that learns.

Two logs keep it for good, :class:`echolm.learning.sqlite_log.SQLiteEventLog` for one machine
and :class:`echolm.learning.redis_log.RedisEventLog` for many; tests take
:class:`echolm.learning.fake_log.MemoryEventLog`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from echolm.settings import Settings

START = ""
"""The position before the first event."""


@dataclass(frozen=True)
class Event:
    """One entry.

    Attributes:
        position: where it stands in its log; opaque, only that log can compare it.
        kind: what happened, e.g. ``rating``.
        body: JSON values, never empty; empty if the entry is damaged.
        at_ms: milliseconds since the epoch.
    """

    position: str
    kind: str
    body: Mapping[str, Any]
    at_ms: int


class EventLog(Protocol):
    """Append and tail, and one snapshot a name. For several threads and processes at once.

    Every reader sees the same events in the same order; none becomes visible behind one that
    was already read. Every method raises UnavailableError if the log cannot be reached.
    """

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        """Store an event for good and return its position.

        UnavailableError leaves open whether the event was stored, so what is sent again
        must be such that it counts once.
        """
        ...

    def read(self, after: str, limit: int) -> list[Event]:
        """Up to ``limit`` events behind the position ``after``, in order."""
        ...

    def save_snapshot(self, name: str, position: str, state: bytes) -> None:
        """Keep what was learnt up to and with ``position``, instead of the name's earlier one."""
        ...

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        """Position and state that were saved last under the name, if any."""
        ...

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        """Whether ``owner`` alone may do what ``name`` stands for, for so long from now on.

        The owner may ask again before the time is over, to go on; others are refused until then.
        """
        ...

    def close(self) -> None:
        """Give connections and files back; the log cannot be used any more."""
        ...


def open_event_log(settings: Settings) -> EventLog:
    """The log that ``event_log`` names: Redis for a URL, else SQLite.

    Raises:
        ConfigurationError: the Redis server would lose what it has acknowledged.
        UnavailableError: the SQLite file cannot be used.
    """
    # Imported here, so that a process loads only the driver that it needs.
    path = settings.event_log_path
    if path is None:
        from echolm.learning.redis_log import RedisEventLog

        return RedisEventLog(settings.event_log, settings.learning)
    from echolm.learning.sqlite_log import SQLiteEventLog

    return SQLiteEventLog(path)


def encode_body(body: Mapping[str, Any]) -> str:
    """The body as JSON."""
    return json.dumps(body, separators=(",", ":"))


def decode_body(raw: bytes) -> Mapping[str, Any]:
    """The body's JSON; empty if it is damaged, so that a reader skips one event and goes on."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
