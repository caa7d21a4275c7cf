"""The learning log: append only, read by every process that learns."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from echolm.errors import UnavailableError


@dataclass(frozen=True)
class Event:
    """One entry.

    Attributes:
        sequence: position in the log, ascending.
        kind: what happened, e.g. ``rating``.
        body: JSON values.
        at_ms: milliseconds since the epoch.
    """

    sequence: int
    kind: str
    body: Mapping[str, Any]
    at_ms: int


class EventLog(Protocol):
    """Append and tail. Safe for use by several threads and processes."""

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        """Store an event for good and return its sequence; UnavailableError if that fails."""
        ...

    def read(self, after: int, limit: int) -> list[Event]:
        """Up to ``limit`` events with a sequence above ``after``, in order."""
        ...


class SQLiteEventLog:
    """The embedded log: one SQLite file in WAL mode, shared by the processes of one machine."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=10, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # An acknowledged rating must survive a crash of the machine, too.
            self._db.execute("PRAGMA synchronous=FULL")
            with self._db:
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
                    " kind TEXT NOT NULL, body TEXT NOT NULL, at_ms INTEGER NOT NULL)"
                )
        except sqlite3.Error as error:
            raise UnavailableError(f"learning log {path}: {error}") from error

    def append(self, kind: str, body: Mapping[str, Any]) -> int:
        row = (kind, json.dumps(body, separators=(",", ":")), time.time_ns() // 1_000_000)
        try:
            with self._lock, self._db:
                cursor = self._db.execute(
                    "INSERT INTO events (kind, body, at_ms) VALUES (?, ?, ?)", row
                )
        except sqlite3.Error as error:
            raise UnavailableError(f"learning log {self._path}: {error}; try again") from error
        return int(cursor.lastrowid or 0)

    def read(self, after: int, limit: int) -> list[Event]:
        try:
            with self._lock:
                rows = self._db.execute(
                    "SELECT sequence, kind, body, at_ms FROM events WHERE sequence > ?"
                    " ORDER BY sequence LIMIT ?",
                    (after, limit),
                ).fetchall()
        except sqlite3.Error as error:
            raise UnavailableError(f"learning log {self._path}: {error}") from error
        return [Event(s, kind, _parse(body), at_ms) for s, kind, body, at_ms in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _parse(body: str) -> Mapping[str, Any]:
    """The body's JSON; empty if it is damaged, so that a reader skips one event and goes on."""
    try:
        value = json.loads(body)
    except (TypeError, ValueError):
        value = None
    return value if isinstance(value, dict) else {}
