"""One SQLite file in WAL mode, for the threads of a process and the processes of a machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from echolm import private
from echolm.errors import UnavailableError

_LOCK_WAIT_S = 10.0


class SQLiteFile:
    """A connection that the threads of a process share, one transaction at a time.

    Args:
        path: the file; it is created where it is missing, with its directory, for its owner only.
        title: what the file holds; error messages begin with it.
        prepare: creates the tables, in a transaction. It is called again where another process
            held the file for too long.
        durable: whether a commit waits for the disk and survives a crash of the machine; otherwise
            it survives a crash of the process only.
        pragmas: settings of a new file, in effect before its first table.

    Raises:
        UnavailableError: the file cannot be used. All methods raise it.
    """

    def __init__(
        self,
        path: Path,
        title: str,
        prepare: Callable[[sqlite3.Connection], object],
        *,
        durable: bool,
        pragmas: Sequence[str] = (),
        text_factory: Callable[[bytes], object] = str,
    ) -> None:
        self._path, self._title = path, title
        self._lock = threading.Lock()
        with self.reported():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its other two files the mode of the first.
            os.close(private.opener(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
            self._db = self.connect()
        self._db.text_factory = text_factory
        # Where several processes create the file at once, the change to WAL does not wait for
        # the others as all else does, but fails.
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                with self.transaction() as db:
                    for pragma in (*pragmas, "journal_mode=WAL"):
                        db.execute(f"PRAGMA {pragma}")
                    db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    prepare(db)
                return
            except UnavailableError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    self._db.close()
                    raise
                time.sleep(0.02)

    @contextmanager
    def transaction(self, advice: str = "") -> Iterator[sqlite3.Connection]:
        """The connection, used by no other thread; commits at the end, or rolls back.

        Error messages end with ``advice``, which says how to mend a failure.
        """
        with self.reported(advice), self._lock, self._db:
            yield self._db

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement as a transaction of its own, and give the rows that it returns."""
        with self.transaction() as db:
            return db.execute(statement, values).fetchall()

    @contextmanager
    def reported(self, advice: str = "") -> Iterator[None]:
        """Raises errors of SQLite and of the file system as UnavailableError."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"{self._title} {self._path}: {error}{advice}") from error

    def connect(self) -> sqlite3.Connection:
        """A second connection, which does not hold up users of the first; the caller closes it."""
        return sqlite3.connect(self._path, timeout=_LOCK_WAIT_S, check_same_thread=False)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()
