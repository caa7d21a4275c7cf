"""What was admitted and is not in the store yet, in a file.

An interaction is in the log before its admission is acknowledged and leaves it when the store
has it, so no crash loses it; what a crash makes the writer store twice has the same id, and
counts once.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echolm.errors import UnavailableError
from echolm.store.base import Example

Entry = tuple[Example, NDArray[np.float32]]
"""An example and its embedding, FP32 [D]."""

_LOCK_WAIT_S = 10.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS pending (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
    " id INTEGER NOT NULL UNIQUE, example TEXT NOT NULL, embedding BLOB NOT NULL)"
)


class WriteAheadLog:
    """A bounded queue in a SQLite file. For several threads of one process.

    Args:
        path: made where it is missing, with its directory.
        capacity: most entries.

    Raises:
        UnavailableError: the file cannot be used; so do all methods.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._path = path
        self._capacity = capacity
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT_S, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"example write_ahead_log {path}: {error}") from error
        with self._used() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")  # a crash of the machine loses nothing, either
            db.execute("PRAGMA secure_delete=ON")
            db.execute(_TABLE)

    def __len__(self) -> int:
        with self._used() as db:
            return _count(db)

    def append(self, entries: Sequence[Entry]) -> int:
        """Keep entries for good, as many of the first as there is room for; gives how many."""
        with self._used() as db:
            taken = entries[: max(0, self._capacity - _count(db))]
            db.executemany(
                "INSERT INTO pending (id, example, embedding) VALUES (?, ?, ?)",
                [
                    (e.id, json.dumps(asdict(e)), np.asarray(v, dtype="<f4").tobytes())
                    for e, v in taken
                ],
            )
        return len(taken)

    def oldest(self, limit: int) -> list[Entry]:
        """The entries that have waited longest, in order. A damaged one is removed."""
        with self._used() as db:
            rows = db.execute(
                "SELECT id, example, embedding FROM pending ORDER BY sequence LIMIT ?", (limit,)
            ).fetchall()
        entries, damaged = [], []
        for id, example, embedding in rows:
            try:
                entries.append((Example(**json.loads(example)), np.frombuffer(embedding, "<f4")))
            except (TypeError, ValueError):
                damaged.append(id)
        if damaged:
            self.remove(damaged)
        return entries

    def remove(self, ids: Sequence[int]) -> None:
        """Forget entries by their examples' ids; unknown ones are ignored."""
        with self._used() as db:
            db.executemany("DELETE FROM pending WHERE id = ?", [(id,) for id in ids])

    def wipe(self) -> None:
        """Leave nothing of what was removed in the files; as far as no other process reads them."""
        with self._used() as db:
            db.commit()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Give the file back; the write_ahead_log cannot be used any more."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction of this thread's own."""
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.Error as error:
            raise UnavailableError(f"example write_ahead_log {self._path}: {error}") from error


def _count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM pending").fetchone()[0])
