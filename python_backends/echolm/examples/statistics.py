"""What each stored example is worth, in a file: a view of the learning log.

A snapshot of the file in the log stands for events that were removed from it. No process holds
anything per example in memory. Every replica that keeps such a file reads the same events in the
same order, so all files hold the same.
"""

from __future__ import annotations

import logging
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from echolm.clock import now_ms
from echolm.examples.statistics_updates import (
    META_TABLE,
    TABLE_NAMES,
    TABLES,
    ForwardDecay,
    StatisticsUpdates,
    meta,
    remove_damaged,
    set_meta,
)
from echolm.learning.event_log import START, Event, EventLog, TrimmedError
from echolm.learning.learner import SEPARATOR
from echolm.sqlite import SQLiteFile

logger = logging.getLogger("echolm")

_VALUE_ERRORS = (
    *(sqlite3.IntegrityError, sqlite3.DataError),
    *(sqlite3.InterfaceError, sqlite3.ProgrammingError),
)
"""Errors of SQLite whose cause are values, such as NaN, which is its NULL, and not the file."""
_VERSION = 2
_FORMER_FILE = "examples.ledger.sqlite"  # of an earlier version; its log has all that it had
_FORMER_SNAPSHOT = "ledger"
_FORMER_TABLE = "successions"

Order = Literal["value", "density", "gain", "uses", "age"]
_ORDERS: Mapping[Order, str] = {
    "value": "rank DESC",
    "density": "density DESC",
    "gain": "gain_rank DESC, id",
    "uses": "uses DESC, id",
    "age": "created_at_ms, id",
}


@dataclass(frozen=True)
class Replacement:
    """Ids of an example and of a better one whose replacement of it was begun and has not ended.

    Once it is ``logged`` that the better one is stored, the old one must go.
    """

    old: int
    new: int
    logged: bool


@dataclass(frozen=True)
class ExampleStatistics:
    """What is known of one example.

    Attributes:
        value: offloads that would not have been without it, decayed (0.9 an hour by default).
        gain: sum of what a better response could have gained at each use, decayed as the value.
        uses: number of prompts that held the example.
        ratings: number of ratings of answers to those prompts.
        replays: how often its response, or that of an example before it, was generated anew.
    """

    id: int
    tenant: str
    source_llm: str
    quality: float
    num_bytes: int
    created_at_ms: int
    expires_at_ms: int
    value: float
    gain: float
    uses: int
    ratings: int
    replays: int
    last_used_ms: int


class StatisticsTable:
    """Statistics of all stored examples. For several threads and processes of one machine.

    A file of another version is made anew from the log.

    Args:
        costs: relative cost of each LLM, the strongest 1.
        decay: share of a value that is left after an hour.

    Attributes:
        skipped: damaged events.

    Raises:
        UnavailableError: the file cannot be used; so do all methods.
    """

    def __init__(
        self,
        path: Path,
        costs: Mapping[str, float],
        decay: float = 0.9,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._decay = ForwardDecay(decay)
        self._updates = StatisticsUpdates(costs, self._decay)
        self._now_ms = now_ms
        self._version = f"{_VERSION} {decay}"
        self.skipped = 0
        # It can be made again from the log, so a crash of the machine may cost the last events.
        self._file = SQLiteFile(path, "example statistics", self._prepare, durable=False)
        with self._file.reported():
            for suffix in ("", "-wal", "-shm"):
                path.with_name(_FORMER_FILE + suffix).unlink(missing_ok=True)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")  # another process may open it, too
        db.execute(META_TABLE)
        if meta(db, "version", self._version) != self._version:
            for table in TABLE_NAMES:
                db.execute(f"DROP TABLE IF EXISTS {table}")
            db.execute(META_TABLE)
        for statement in TABLES:
            db.execute(statement)
        set_meta(db, "version", self._version)

    def follow(self, log: EventLog, batch: int = 1_000) -> int:
        """Take in all new events of the log; gives how many there were.

        A new file, and one that has missed what was removed from the log, starts from the
        snapshot in the log.

        Raises:
            UnavailableError: the log cannot be read; calling again goes on where it ended.
        """
        count, usable = 0, True
        while True:
            with self._file.transaction() as db:
                position = meta(db, "position", START)
            if position == START and usable and self._restore(log, position):
                continue
            try:
                events = log.read(position, batch)
            except TrimmedError as error:
                logger.warning("%s; the example statistics start anew", error)
                usable = usable and self._restore(log, position)
                if not usable:
                    self._forget(position)
                continue
            if not events:
                return count
            with self._file.transaction() as db:
                db.execute("BEGIN IMMEDIATE")
                # Another process that uses the file may have read the same events.
                if meta(db, "position", START) == position:
                    for event in events:
                        self._apply(db, event)
                    if position == START:
                        set_meta(db, "incomplete", "yes")
                    set_meta(db, "position", events[-1].position)
                    count += len(events)

    @property
    def snapshot_name(self) -> str:
        """Name of its snapshot in the log."""
        return f"statistics{SEPARATOR}{self._version}"

    @property
    def is_complete(self) -> bool:
        """Whether examples from before the log's first event are there; see :meth:`completed`."""
        with self._file.transaction() as db:
            return meta(db, "incomplete", "") == ""

    def completed(self) -> None:
        """Take note that there are statistics of all stored examples, after a look at them all."""
        with self._file.transaction() as db:
            set_meta(db, "incomplete", "")

    def save(self, log: EventLog) -> None:
        """Keep a snapshot of the file in the log; UnavailableError if that fails."""
        saved = {snapshot.name: snapshot.position for snapshot in log.snapshots()}
        self.follow(log)
        with (
            self._file.reported(),
            tempfile.TemporaryDirectory() as folder,
            closing(self._file.connect()) as db,
        ):
            copy = Path(folder) / "statistics.sqlite"
            db.execute("ATTACH ? AS copy", (str(copy),))
            with db:
                db.execute("BEGIN")
                for table in TABLE_NAMES:
                    db.execute(f"CREATE TABLE copy.{table} AS SELECT * FROM main.{table}")
                position = meta(db, "position", START, "copy.meta")
            db.execute("DETACH copy")
            data = zlib.compress(copy.read_bytes(), 1)
        if position != START:
            name = self.snapshot_name
            log.save_snapshot(name, position, data, saved.get(name, START))

    def remove_damaged(self) -> int:
        """Remove rows that no event leads to; gives how many there were."""
        with self._file.transaction() as db:
            return remove_damaged(db)

    def adopt(self, stored: Iterable[Mapping[str, Any]]) -> int:
        """Add stored examples, described as in a ``CHANGE``; gives how many were not there yet.

        Damaged ones are left out and counted in ``skipped``.
        """
        added = 0
        with self._file.transaction() as db:
            for fields in stored:
                db.execute("SAVEPOINT example")
                try:
                    added += self._updates.add(db, fields, int(fields["created_at_ms"]))
                except Exception as error:
                    if _is_of_the_file(error):
                        raise
                    db.execute("ROLLBACK TO example")
                    self.skipped += 1
                    logger.warning("example statistics: an example is left out: %r", error)
                db.execute("RELEASE example")
        return added

    def totals(self) -> tuple[int, int]:
        """Number of examples, and the bytes of their texts."""
        with self._file.transaction() as db:
            return int(meta(db, "count", "0")), int(meta(db, "bytes", "0"))

    def removals(self) -> dict[str, int]:
        """How many examples were removed, by reason."""
        return dict(self._file.rows("SELECT reason, number FROM removals"))

    def replacements(self) -> list[Replacement]:
        """Those that were begun and have not ended, of every process that uses the log."""
        rows = self._file.rows("SELECT old, new, logged FROM replacements ORDER BY new")
        return [Replacement(old, new, bool(logged)) for old, new, logged in rows]

    def expired(self, now_ms: int, limit: int) -> list[int]:
        """Ids of examples whose time is over, ``limit`` at most."""
        query = "SELECT id FROM examples WHERE expires_at_ms <= ? ORDER BY expires_at_ms LIMIT ?"
        return [i for (i,) in self._file.rows(query, (now_ms, limit))]

    def least_worth(self, count: int, num_bytes: int, limit: int) -> list[tuple[int, int]]:
        """Id and bytes of the examples of least value per byte that free so much together.

        There are ``limit`` at most.
        """
        chosen: list[tuple[int, int]] = []
        query = "SELECT id, num_bytes FROM examples ORDER BY density, id LIMIT ?"
        with self._file.transaction() as db:
            for i, size in db.execute(query, (limit,)):
                if count <= 0 and num_bytes <= 0:
                    break
                chosen.append((i, size))
                count, num_bytes = count - 1, num_bytes - size
        return chosen

    def ranked(self, order: Order, limit: int, offset: int = 0) -> list[ExampleStatistics]:
        """Statistics of examples in an order."""
        return self._select(f"ORDER BY {_ORDERS[order]} LIMIT ? OFFSET ?", (limit, offset))

    def get(self, id: int) -> ExampleStatistics | None:
        """Statistics of one example; None if there are none."""
        return next(iter(self._select("WHERE id = ?", (id,))), None)

    def known(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids of which there are statistics."""
        with self._file.transaction() as db:
            query = "SELECT 1 FROM examples WHERE id = ?"
            return {i for i in ids if db.execute(query, (i,)).fetchone() is not None}

    def pages(self, size: int) -> Iterator[list[int]]:
        """Ids of all examples, ascending, some at a time; others may come and go meanwhile."""
        last = -1
        query = "SELECT id FROM examples WHERE id > ? ORDER BY id LIMIT ?"
        while rows := self._file.rows(query, (last, size)):
            yield [i for (i,) in rows]
            last = rows[-1][0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _restore(self, log: EventLog, position: str) -> bool:
        """Start from the snapshot in the log, unless the file stands there already."""
        name, former = self.snapshot_name, f"{_FORMER_SNAPSHOT}{SEPARATOR}{self._version}"
        found = log.load_snapshot(name)
        if found is None:
            name, found = former, log.load_snapshot(former)
        if found is None or found[0] == position:
            return False
        try:
            with tempfile.TemporaryDirectory() as folder, closing(self._file.connect()) as db:
                copy = Path(folder) / "statistics.sqlite"
                copy.write_bytes(zlib.decompress(found[1]))
                db.execute("ATTACH ? AS copy", (str(copy),))
                if name == former:  # saved before a table was renamed
                    db.execute(f"ALTER TABLE copy.{_FORMER_TABLE} RENAME TO replacements")
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    if meta(db, "position", START) != position:
                        return True  # another process has just done so
                    for table in TABLE_NAMES:
                        db.execute(f"DELETE FROM main.{table}")
                        db.execute(f"INSERT INTO main.{table} SELECT * FROM copy.{table}")
                    remove_damaged(db)
                db.execute("DETACH copy")
        except (OSError, sqlite3.Error, zlib.error) as error:
            logger.warning("snapshot %s is of no use: %r", name, error)
            return False
        logger.info("example statistics: started from snapshot %s", name)
        return True

    def _forget(self, position: str) -> None:
        """Be as a new file is, if the file still stands there."""
        with self._file.transaction() as db:
            db.execute("BEGIN IMMEDIATE")
            if meta(db, "position", START) == position:
                for table in TABLE_NAMES:
                    db.execute(f"DELETE FROM {table}")
                set_meta(db, "version", self._version)

    def _apply(self, db: sqlite3.Connection, event: Event) -> None:
        db.execute("SAVEPOINT event")
        try:
            self._updates.apply(db, event)
        except Exception as error:  # one bad event must not end all maintenance
            if _is_of_the_file(error):
                raise
            db.execute("ROLLBACK TO event")
            self.skipped += 1
            logger.warning("example statistics: event %s skipped: %r", event.position, error)
        db.execute("RELEASE event")

    def _select(self, clause: str, values: Sequence[int]) -> list[ExampleStatistics]:
        rows = self._file.rows(
            "SELECT id, tenant, source_llm, quality, num_bytes, created_at_ms, expires_at_ms,"
            f" rank, gain_rank, uses, ratings, replays, last_used_ms FROM examples {clause}",
            values,
        )
        now, value = self._now_ms(), self._decay.value
        return [
            ExampleStatistics(*row[:7], *(value(rank, now) for rank in row[7:9]), *row[9:])
            for row in rows
        ]


def _is_of_the_file(error: Exception) -> bool:
    return isinstance(error, sqlite3.Error) and not isinstance(error, _VALUE_ERRORS)
