"""What was admitted and is not in the store yet, in a file.

An interaction is in the log from before its admission is acknowledged until the store has it, so
no crash loses it; what a crash makes the writer store twice has the same id, and counts once.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from echolm.errors import InvalidRequestError, UnavailableError
from echolm.sqlite import SQLiteFile
from echolm.store.base import Example, Stored
from echolm.store.checks import check_stored

logger = logging.getLogger("echolm")

_TITLE = "example write-ahead log"
_FORMER_NAME = "examples.journal.sqlite"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS pending (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
    " id INTEGER NOT NULL UNIQUE, example TEXT NOT NULL, embedding BLOB NOT NULL)"
)


class WriteAheadLog:
    """A bounded queue in a SQLite file. For several threads of one process.

    What waits in the file of an earlier version, which had another name, is taken over.

    Raises:
        UnavailableError: the file cannot be used; so do all methods.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self._capacity = capacity
        self._file = SQLiteFile(
            path,
            _TITLE,
            lambda db: db.execute(_TABLE),
            durable=True,
            pragmas=("secure_delete=ON",),
        )
        if (former := path.with_name(_FORMER_NAME)).exists():
            self._take_over(former)

    def __len__(self) -> int:
        with self._file.transaction() as db:
            return _count(db)

    def append(self, entries: Sequence[Stored]) -> int:
        """Keep entries for good, as many of the first as there is room for; gives how many."""
        insert = "INSERT INTO pending (id, example, embedding) VALUES (?, ?, ?)"
        with self._file.transaction() as db:
            taken = entries[: max(0, self._capacity - _count(db))]
            for example, embedding in taken:
                vector = np.asarray(embedding, dtype="<f4").tobytes()
                db.execute(insert, (example.id, json.dumps(asdict(example)), vector))
        return len(taken)

    def oldest(self, limit: int) -> list[Stored]:
        """The entries that have waited longest, in order. A damaged one is removed."""
        query = "SELECT id, example, embedding FROM pending ORDER BY sequence LIMIT ?"
        while rows := self._file.rows(query, (limit,)):
            entries, damaged = [], []
            for id, example, embedding in rows:
                try:
                    vector = np.frombuffer(embedding, "<f4")
                    entry = Example(**json.loads(example)), vector
                    check_stored(entry, vector.size)
                    entries.append(entry)
                except (InvalidRequestError, TypeError, ValueError) as error:
                    logger.error("%s: an entry is damaged and removed: %s", _TITLE, error)
                    damaged.append(id)
            self.remove(damaged)
            if entries:
                return entries
        return []

    def remove(self, ids: Sequence[int]) -> None:
        """Forget entries by their examples' ids; unknown ones are ignored."""
        with self._file.transaction() as db:
            db.executemany("DELETE FROM pending WHERE id = ?", [(id,) for id in ids])

    def wipe(self) -> None:
        """Leave nothing of what was removed in the files, unless another process reads them."""
        with self._file.transaction() as db:
            db.commit()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _take_over(self, former: Path) -> None:
        try:
            self._file.rows("ATTACH ? AS former", (str(former),))
            self._file.rows(
                "INSERT OR IGNORE INTO pending (id, example, embedding)"
                " SELECT id, example, embedding FROM former.pending ORDER BY sequence"
            )
        except UnavailableError as error:  # it has no such table, or is no database
            logger.warning("%s is left aside: %s", former, error)
            return
        # Only now, since a crash between the two commits must not lose anything; and the file
        # itself stays, since a server of the earlier version may still write to it.
        self._file.rows("DELETE FROM former.pending WHERE id IN (SELECT id FROM main.pending)")
        self._file.rows("DETACH former")


def _count(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM pending").fetchone()[0])
