"""The embedded learning log: one SQLite file in WAL mode, for the processes of one machine."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echolm.errors import UnavailableError
from echolm.learning.event_log import START, Event, decode_body, encode_body

_LOCK_WAIT_S = 10.0
_RETRY_S = 0.02

_TABLES = (
    "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
    " kind TEXT NOT NULL, body TEXT NOT NULL, at_ms INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS snapshots (name TEXT PRIMARY KEY, position TEXT NOT NULL,"
    " state BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL,"
    " until_ms INTEGER NOT NULL)",
)


class SQLiteEventLog:
    """An :class:`echolm.learning.event_log.EventLog` in a file.

    SQLite lets one process write at a time, so the order of the sequence is the order in which
    events become visible.

    Args:
        path: made where it is missing, with its directory.

    Raises:
        UnavailableError: it cannot be used, or is no such log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT_S, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"learning log {path}: {error}") from error
        # Text that is not UTF-8 damages one event; SQLite's own decoding would fail the query.
        self._db.text_factory = bytes
        # Where several processes make the file at once, the change to WAL does not wait for the
        # others as all else does, but fails.
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                self._prepare()
                break
            except UnavailableError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    self._db.close()
                    raise
                time.sleep(_RETRY_S)

    def _prepare(self) -> None:
        with self._used() as db:
            db.execute("PRAGMA journal_mode=WAL")
            # An acknowledged rating must survive a crash of the machine, too.
            db.execute("PRAGMA synchronous=FULL")
            for table in _TABLES:
                db.execute(table)

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        row = (kind, encode_body(body), time.time_ns() // 1_000_000)
        with self._used("; try again") as db:
            cursor = db.execute("INSERT INTO events (kind, body, at_ms) VALUES (?, ?, ?)", row)
        return str(cursor.lastrowid)

    def read(self, after: str, limit: int) -> list[Event]:
        with self._used() as db:
            rows = db.execute(
                "SELECT sequence, kind, body, at_ms FROM events WHERE sequence > ?"
                " ORDER BY sequence LIMIT ?",
                (0 if after == START else int(after), limit),
            ).fetchall()
        return [_event(*row) for row in rows]

    def save_snapshot(self, name: str, position: str, state: bytes) -> None:
        with self._used() as db:
            db.execute("REPLACE INTO snapshots VALUES (?, ?, ?)", (name, position, state))

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        with self._used() as db:
            row = db.execute(
                "SELECT position, state FROM snapshots WHERE name = ?", (name,)
            ).fetchone()
        return None if row is None else (row[0].decode(), row[1])

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        now = time.time_ns() // 1_000_000
        with self._used() as db:
            changed = db.execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
                " SET owner = excluded.owner, until_ms = excluded.until_ms"
                " WHERE owner = excluded.owner OR until_ms <= ?",
                (name, owner, now + int(seconds * 1_000), now),
            )
        return changed.rowcount == 1

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def _used(self, mend: str = "") -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction of this thread's own."""
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.Error as error:
            raise UnavailableError(f"learning log {self._path}: {error}{mend}") from error


def _event(sequence: int, kind: Any, body: Any, at_ms: Any) -> Event:
    """A row as an event; SQLite keeps any type in any column, so damage may be of any type."""
    return Event(
        str(sequence),
        kind.decode("utf-8", "replace") if isinstance(kind, bytes) else "",
        decode_body(body if isinstance(body, bytes) else b""),
        at_ms if isinstance(at_ms, int) else 0,
    )
