"""The embedded learning log: one SQLite file in WAL mode, for the processes of one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from echolm.clock import now_ms
from echolm.learning.event_log import START, Event, SavedSnapshot, TrimmedError, encode_body
from echolm.sqlite import SQLiteFile

_TRIMMED_AT_ONCE = 5_000  # events; writers wait meanwhile
_FREED_AT_ONCE = 1_000  # pages; writers wait meanwhile
_LONGEST_LEASE_MS = 24 * 3_600_000
# Of a snapshot's row that is not damaged, of whose columns SQLite takes any type.
_INTACT = "typeof(position) = 'text' AND typeof(state) = 'blob' AND typeof(name) = 'text'"

_TABLES = (
    "CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
    " kind TEXT NOT NULL, body TEXT NOT NULL, at_ms INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS snapshots (name TEXT PRIMARY KEY, position TEXT NOT NULL,"
    " state BLOB NOT NULL, saved_at_ms INTEGER NOT NULL DEFAULT 0)",
    "CREATE TABLE IF NOT EXISTS trimmed (one INTEGER PRIMARY KEY CHECK (one = 1),"
    " sequence INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, owner TEXT NOT NULL,"
    " until_ms INTEGER NOT NULL)",
)


class SQLiteEventLog:
    """An :class:`echolm.learning.event_log.EventLog` in a file.

    SQLite lets one process write at a time, so the order of the sequence is the order in which
    events become visible. A file of an earlier version does not shrink when events are removed,
    but new ones take their place.

    Raises:
        UnavailableError: the file cannot be used, or is no such log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = SQLiteFile(
            path,
            "learning log",
            _prepare,
            durable=True,  # an acknowledged rating must survive a crash of the machine, too
            pragmas=("auto_vacuum=INCREMENTAL",),
            # Text that is not UTF-8 damages one event; SQLite's decoding would fail the query.
            text_factory=bytes,
        )

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        row = (kind, encode_body(body), now_ms())
        with self._file.transaction("; try again") as db:
            cursor = db.execute("INSERT INTO events (kind, body, at_ms) VALUES (?, ?, ?)", row)
        return str(cursor.lastrowid)

    def read(self, after: str, limit: int) -> list[Event]:
        if after != START and not _is_position(after):
            raise TrimmedError(f"learning log {self._path}: a snapshot's position is damaged")
        with self._file.transaction() as db:
            rows = db.execute(
                "SELECT sequence, kind, body, at_ms FROM events WHERE sequence > ?"
                " ORDER BY sequence LIMIT ?",
                (0 if after == START else int(after), limit),
            ).fetchall()
            # Afterwards, so that nothing can be removed unnoticed in between.
            if after != START and int(after) < _trimmed(db):
                raise TrimmedError(f"learning log {self._path}: events behind {after} were removed")
        return [Event.decoded(str(sequence), *row) for sequence, *row in rows]

    def trim(self, before_ms: int, taken_in: Sequence[str]) -> int:
        last = min(int(at) if _is_position(at) else 0 for at in taken_in)
        # Not the times, the sequence is the order that counts; clocks may jump.
        young = self._file.rows(
            "SELECT sequence FROM events WHERE typeof(at_ms) = 'integer' AND at_ms >= ?"
            " ORDER BY sequence LIMIT 1",
            (before_ms,),
        )
        if young:
            last = min(last, young[0][0] - 1)
        number = 0
        while removed := self._trim_some(last):
            number += removed
        while number and self._free_some():
            pass
        return number

    def _trim_some(self, last: int) -> int:
        with self._file.transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            first = db.execute("SELECT min(sequence) FROM events").fetchone()[0]
            if first is None or first > last:
                return 0
            end = min(last, first + _TRIMMED_AT_ONCE - 1)
            removed = db.execute("DELETE FROM events WHERE sequence <= ?", (end,)).rowcount
            db.execute("REPLACE INTO trimmed VALUES (1, ?)", (max(end, _trimmed(db)),))
        return removed

    def _free_some(self) -> bool:
        """Give some pages back to the file system; whether there were any."""
        with self._file.transaction() as db:
            before = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA incremental_vacuum({_FREED_AT_ONCE})").fetchall()
            return bool(db.execute("PRAGMA page_count").fetchone()[0] < before)

    def save_snapshot(self, name: str, position: str, state: bytes, replaces: str = START) -> bool:
        with self._file.transaction() as db:
            saved = db.execute(
                "REPLACE INTO snapshots (name, position, state, saved_at_ms) SELECT ?, ?, ?, ?"
                # A damaged one is in nobody's way.
                " WHERE ? = ifnull((SELECT position FROM snapshots WHERE name = ?"
                f" AND {_INTACT}), ?)",
                (name, position, state, now_ms(), replaces, name, START),
            )
        return saved.rowcount == 1

    def snapshots(self) -> list[SavedSnapshot]:
        rows = self._file.rows(f"SELECT name, position, saved_at_ms FROM snapshots WHERE {_INTACT}")
        return [
            SavedSnapshot(name.decode("utf-8", "replace"), at.decode(), _integer(ms))
            for name, at, ms in rows
        ]

    def drop_snapshot(self, name: str) -> None:
        self._file.rows("DELETE FROM snapshots WHERE name = ?", (name,))

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        rows = self._file.rows(
            f"SELECT position, state FROM snapshots WHERE name = ? AND {_INTACT}", (name,)
        )
        return (rows[0][0].decode(), bytes(rows[0][1])) if rows else None

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        now = now_ms()
        with self._file.transaction() as db:
            changed = db.execute(
                "INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE"
                " SET owner = excluded.owner, until_ms = excluded.until_ms"
                # Nobody leases for longer than a day: the row is damaged.
                " WHERE owner = excluded.owner OR until_ms NOT BETWEEN ? AND ?",
                (name, owner, now + int(seconds * 1_000), now + 1, now + _LONGEST_LEASE_MS),
            )
        return changed.rowcount == 1

    def close(self) -> None:
        self._file.close()


def _prepare(db: sqlite3.Connection) -> None:
    for table in _TABLES:
        db.execute(table)
    if _is_of_an_earlier_version(db):
        db.execute("BEGIN IMMEDIATE")
        if _is_of_an_earlier_version(db):  # no other process was faster
            db.execute("ALTER TABLE snapshots ADD COLUMN saved_at_ms INTEGER NOT NULL DEFAULT 0")


def _is_of_an_earlier_version(db: sqlite3.Connection) -> bool:
    """Whether its snapshots have no time."""
    return b"saved_at_ms" not in {row[1] for row in db.execute("PRAGMA table_info(snapshots)")}


def _trimmed(db: sqlite3.Connection) -> int:
    """Sequence of the last event that was removed; 0 if there is none."""
    row = db.execute("SELECT sequence FROM trimmed").fetchone()
    return 0 if row is None else _integer(row[0])


def _is_position(text: str) -> bool:
    return text.isdecimal() and len(text) < 19


def _integer(value: Any) -> int:
    """A column's value; 0 if it is damaged."""
    return value if isinstance(value, int) else 0
