"""What each stored example is worth, in a file: a view of the learning log.

A snapshot of the file in the log stands for events that were removed from it.

Nothing per example is held in memory. Every replica that keeps a statistics reads the same events
in the same order, so all of them say the same.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from echolm.clock import now_ms
from echolm.errors import UnavailableError
from echolm.examples.events import CHANGE, REPLAY, SUCCESSION, USAGE
from echolm.learning.event_log import START, Event, EventLog, TrimmedError
from echolm.learning.feedback import RATING
from echolm.learning.learner import SEPARATOR
from echolm.store.base import FRESH_VALUE, NEVER

logger = logging.getLogger("echolm")

_HOUR_MS = 3_600_000.0
_EPOCH_MS = 1_735_689_600_000  # 2025-01-01, as in ExampleIds
_LEAST_VALUE = 1e-9
_REMEMBERED_MS = 8 * 24 * 3_600_000  # ratings that a later one of the same answer corrects
_LOCK_WAIT_S = 10.0
_VERSION = 2

_TABLES = (
    "CREATE TABLE IF NOT EXISTS examples (id INTEGER PRIMARY KEY, num_bytes INTEGER NOT NULL,"
    " tenant TEXT NOT NULL, source_llm TEXT NOT NULL, quality REAL NOT NULL,"
    " created_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL,"
    " rank REAL NOT NULL, density REAL NOT NULL, gain_rank REAL NOT NULL,"
    " uses INTEGER NOT NULL DEFAULT 0, ratings INTEGER NOT NULL DEFAULT 0,"
    " replays INTEGER NOT NULL DEFAULT 0, last_used_ms INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX IF NOT EXISTS by_density ON examples (density)",
    "CREATE INDEX IF NOT EXISTS by_gain ON examples (gain_rank DESC, id)",
    "CREATE INDEX IF NOT EXISTS by_expiry ON examples (expires_at_ms)",
    "CREATE TABLE IF NOT EXISTS ratings (request_id TEXT PRIMARY KEY, score REAL NOT NULL,"
    " at_ms INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_time ON ratings (at_ms)",
    "CREATE TABLE IF NOT EXISTS removals (reason TEXT PRIMARY KEY, number INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS successions (old INTEGER PRIMARY KEY, new INTEGER NOT NULL,"
    " made INTEGER NOT NULL DEFAULT 0)",
)
_KEPT = ("examples", "ratings", "removals", "successions")
_META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"

Order = Literal["value", "density", "gain", "uses", "age"]
_ORDERS: Mapping[Order, str] = {
    "value": "rank DESC",
    "density": "density DESC",
    "gain": "gain_rank DESC, id",
    "uses": "uses DESC, id",
    "age": "created_at_ms, id",
}


@dataclass(frozen=True)
class Succession:
    """An example that another one is taking the place of.

    Attributes:
        made: whether the log says that it has; what is left is to delete the old one.
    """

    old: int
    new: int
    made: bool


@dataclass(frozen=True)
class Account:
    """What is known of one example.

    Attributes:
        value: offloads that would not have been without it, decayed (0.9 an hour by default).
        gain: sum of what a better response could have gained at each use, decayed likewise.
        uses: prompts that it stood in.
        ratings: of answers to those prompts.
        replays: how often its response was generated anew, or that of an example before it.
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
    """Accounts of all stored examples. For several threads and processes of one machine.

    A value decays at the same rate for all examples, so their order changes only where one is
    used. It is kept as the logarithm of what it would be if it had grown instead (forward
    decay: Cormode et al., ICDE 2009), so that an index can hold the order for good.

    Args:
        path: made where it is missing, with its directory; one of another version is made anew
            from the log.
        costs: relative cost of each LLM, the strongest 1.
        decay: what a value keeps in an hour.

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
        self._path = path
        self._costs = dict(costs)
        self._rate = -math.log(decay)
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self.skipped = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT_S, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"example statistics {path}: {error}") from error
        with self._used() as db:
            db.execute("PRAGMA journal_mode=WAL")
            # It can be made again from the log, so a crash of the machine may cost the last events.
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("BEGIN IMMEDIATE")  # another process may open it, too
            db.execute(_META)
            self._version = version = f"{_VERSION} {decay}"
            if _meta(db, "version", version) != version:
                for table in (*_KEPT, "meta"):
                    db.execute(f"DROP TABLE IF EXISTS {table}")
                db.execute(_META)
            for table in _TABLES:
                db.execute(table)
            _set_meta(db, "version", version)

    def follow(self, log: EventLog, batch: int = 1_000) -> int:
        """Take in all new events of the log; gives how many there were.

        A new file, and one that has missed what was removed from the log, starts from the
        snapshot in the log.

        Raises:
            UnavailableError: the log cannot be read; calling again goes on where it ended.
        """
        count, usable = 0, True
        while True:
            with self._used() as db:
                position = _meta(db, "position", START)
            if position == START and usable and self._take_over(log, position):
                continue
            try:
                events = log.read(position, batch)
            except TrimmedError as error:
                logger.warning("%s; the example statistics starts anew", error)
                usable = usable and self._take_over(log, position)
                if not usable:
                    self._forget(position)
                continue
            if not events:
                return count
            with self._used() as db:
                db.execute("BEGIN IMMEDIATE")
                # Another process that uses the file may have read the same events.
                if _meta(db, "position", START) == position:
                    for event in events:
                        self._apply(db, event)
                    if position == START:
                        _set_meta(db, "incomplete", "yes")
                    _set_meta(db, "position", events[-1].position)
                    count += len(events)

    @property
    def snapshot_name(self) -> str:
        """Of its snapshot in the log."""
        return f"statistics{SEPARATOR}{self._version}"

    @property
    def is_complete(self) -> bool:
        """Whether all accounts of examples from before the log's first event are there.

        They are once :meth:`completed` was told that the store had been looked through.
        """
        with self._used() as db:
            return _meta(db, "incomplete", "") == ""

    def completed(self) -> None:
        """Take note that every example in the store has an account."""
        with self._used() as db:
            _set_meta(db, "incomplete", "")

    def save(self, log: EventLog) -> None:
        """Keep a snapshot of the file in the log.

        Raises:
            UnavailableError: the log cannot be reached, or the file cannot be read.
        """
        saved = {one.name: one.position for one in log.snapshots()}
        self.follow(log)
        try:
            # Another connection, which does not hold up this one's users.
            with tempfile.TemporaryDirectory() as folder, closing(self._connect()) as db:
                copy = Path(folder) / "statistics.sqlite"
                db.execute("ATTACH ? AS copy", (str(copy),))
                with db:
                    db.execute("BEGIN")
                    for table in (*_KEPT, "meta"):
                        db.execute(f"CREATE TABLE copy.{table} AS SELECT * FROM main.{table}")
                    position = _meta(db, "position", START, "copy.meta")
                db.execute("DETACH copy")
                data = zlib.compress(copy.read_bytes(), 1)
        except (OSError, sqlite3.Error) as error:
            raise UnavailableError(f"example statistics {self._path}: {error}") from error
        if position != START:
            log.save_snapshot(
                self.snapshot_name, position, data, saved.get(self.snapshot_name, START)
            )

    def adopt(self, stored: Iterable[Mapping[str, Any]]) -> int:
        """Open accounts for examples that the log does not tell of; gives how many.

        Args:
            stored: fields of them as in a ``CHANGE``.
        """
        added = 0
        with self._used() as db:
            for fields in stored:
                added += self._open(db, fields, int(fields["created_at_ms"]))
        return added

    def totals(self) -> tuple[int, int]:
        """Number of examples, and the bytes of their texts."""
        with self._used() as db:
            return int(_meta(db, "count", "0")), int(_meta(db, "bytes", "0"))

    def removals(self) -> dict[str, int]:
        """How many examples were removed, by reason."""
        with self._used() as db:
            return dict(db.execute("SELECT reason, number FROM removals").fetchall())

    def successions(self) -> list[Succession]:
        """Those that were begun and have not ended, of every process that uses the log."""
        with self._used() as db:
            rows = db.execute("SELECT old, new, made FROM successions ORDER BY new").fetchall()
        return [Succession(old, new, bool(made)) for old, new, made in rows]

    def expired(self, now_ms: int, limit: int) -> list[int]:
        """Ids of examples whose time is over."""
        with self._used() as db:
            rows = db.execute(
                "SELECT id FROM examples WHERE expires_at_ms <= ? ORDER BY expires_at_ms LIMIT ?",
                (now_ms, limit),
            ).fetchall()
        return [i for (i,) in rows]

    def least_worth(self, count: int, num_bytes: int, limit: int) -> list[tuple[int, int]]:
        """Id and bytes of the examples of least value per byte that free so much together.

        Args:
            count: examples to be freed.
            num_bytes: bytes to be freed.
            limit: most ids at a time.
        """
        chosen: list[tuple[int, int]] = []
        with self._used() as db:
            for i, size in db.execute(
                "SELECT id, num_bytes FROM examples ORDER BY density, id LIMIT ?", (limit,)
            ):
                if count <= 0 and num_bytes <= 0:
                    break
                chosen.append((i, size))
                count, num_bytes = count - 1, num_bytes - size
        return chosen

    def accounts(self, order: Order, limit: int, offset: int = 0) -> list[Account]:
        """Examples in an order."""
        return self._select(f"ORDER BY {_ORDERS[order]} LIMIT ? OFFSET ?", (limit, offset))

    def account(self, id: int) -> Account | None:
        """One example; None if it is unknown."""
        found = self._select("WHERE id = ?", (id,))
        return found[0] if found else None

    def known(self, ids: Sequence[int]) -> set[int]:
        """Those of the ids that have an account."""
        with self._used() as db:
            return {i for i in ids if _exists(db, i)}

    def pages(self, size: int) -> Iterator[list[int]]:
        """Ids of all examples, ascending, some at a time; others may come and go meanwhile."""
        last = -1
        while True:
            with self._used() as db:
                rows = db.execute(
                    "SELECT id FROM examples WHERE id > ? ORDER BY id LIMIT ?", (last, size)
                ).fetchall()
            if not rows:
                return
            yield [i for (i,) in rows]
            last = rows[-1][0]

    def close(self) -> None:
        """Give the file back; the statistics cannot be used any more."""
        with self._lock:
            self._db.close()

    def _take_over(self, log: EventLog, position: str) -> bool:
        """Start from the snapshot in the log, unless that is where the file stands already."""
        found = log.load_snapshot(self.snapshot_name)
        if found is None or found[0] == position:
            return False
        try:
            with tempfile.TemporaryDirectory() as folder, closing(self._connect()) as db:
                copy = Path(folder) / "statistics.sqlite"
                copy.write_bytes(zlib.decompress(found[1]))
                db.execute("ATTACH ? AS copy", (str(copy),))
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    if _meta(db, "position", START) != position:
                        return True  # another process has just done so
                    for table in (*_KEPT, "meta"):
                        db.execute(f"DELETE FROM main.{table}")
                        db.execute(f"INSERT INTO main.{table} SELECT * FROM copy.{table}")
                db.execute("DETACH copy")
        except (OSError, sqlite3.Error, zlib.error) as error:
            logger.warning("snapshot %s is of no use: %r", self.snapshot_name, error)
            return False
        logger.info("example statistics: started from snapshot %s", self.snapshot_name)
        return True

    def _forget(self, position: str) -> None:
        """Be as a new file is, if the file still stands there."""
        with self._used() as db:
            db.execute("BEGIN IMMEDIATE")
            if _meta(db, "position", START) == position:
                for table in (*_KEPT, "meta"):
                    db.execute(f"DELETE FROM {table}")
                _set_meta(db, "version", self._version)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_LOCK_WAIT_S)

    def _select(self, clause: str, values: Sequence[int]) -> list[Account]:
        with self._used() as db:
            rows = db.execute(
                "SELECT id, tenant, source_llm, quality, num_bytes, created_at_ms, expires_at_ms,"
                f" rank, gain_rank, uses, ratings, replays, last_used_ms FROM examples {clause}",
                values,
            ).fetchall()
        now = self._age(self._now_ms())
        return [
            Account(*row[:7], *(_exp(rank - now) for rank in row[7:9]), *row[9:]) for row in rows
        ]

    def _age(self, at_ms: float) -> float:
        """What has to be added to a value's logarithm for it to be compared with later ones."""
        return self._rate * (at_ms - _EPOCH_MS) / _HOUR_MS

    def _apply(self, db: sqlite3.Connection, event: Event) -> None:
        try:
            if event.kind == CHANGE:
                self._change(db, event)
            elif event.kind == USAGE:
                for i, n, credit, gain in event.body["uses"]:
                    self._use(db, int(i), int(n), float(credit), float(gain), event.at_ms)
            elif event.kind == RATING:
                self._rate_uses(db, event)
            elif event.kind == REPLAY:
                db.execute(
                    "UPDATE examples SET replays = replays + ?, gain_rank = ? WHERE id = ?",
                    (int(event.body["times"]), self._rank(0.0, event.at_ms), int(event.body["id"])),
                )
                db.execute("DELETE FROM successions WHERE new = ?", (int(event.body["id"]),))
            elif event.kind == SUCCESSION:
                self._announce(db, event)
        except (KeyError, TypeError, ValueError) as error:
            self.skipped += 1
            logger.warning("example statistics: event %s skipped: %s", event.position, error)

    def _change(self, db: sqlite3.Connection, event: Event) -> None:
        for fields in event.body["stored"]:
            self._open(db, fields, event.at_ms)
        for old, new in event.body.get("succeeded", []):
            self._succeed(db, int(old), int(new))
        removed = sum(self._close(db, int(i)) for i in event.body["removed"])
        if removed:
            db.execute(
                "INSERT INTO removals VALUES (?, ?)"
                " ON CONFLICT (reason) DO UPDATE SET number = number + excluded.number",
                (str(event.body["reason"]), removed),
            )
        for i in event.body["repeated"]:
            self._credit(db, int(i), FRESH_VALUE, event.at_ms)

    def _open(self, db: sqlite3.Connection, fields: Mapping[str, Any], at_ms: int) -> int:
        value = float(fields.get("value", FRESH_VALUE))
        if not math.isfinite(value):
            raise ValueError(f"expected a finite value of a new example, got {value}")
        rank = self._rank(value, at_ms)
        num_bytes = max(1, int(fields["num_bytes"]))
        opened = db.execute(
            "INSERT OR IGNORE INTO examples (id, num_bytes, tenant, source_llm, quality,"
            " created_at_ms, expires_at_ms, rank, density, gain_rank)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                int(fields["id"]),
                num_bytes,
                str(fields["tenant"]),
                str(fields["source_llm"]),
                float(fields["quality"]),
                int(fields["created_at_ms"]),
                int(fields.get("expires_at_ms", NEVER)),
                rank,
                rank - math.log(num_bytes),
                self._rank(0.0, at_ms),
            ),
        ).rowcount
        _add_to_totals(db, opened, opened * num_bytes)
        return opened

    def _announce(self, db: sqlite3.Connection, event: Event) -> None:
        """Take note of a succession. Of several that want the same place the first one has it."""
        pair = (int(event.body["old"]), int(event.body["new"]))
        if event.body["abandoned"]:
            db.execute("DELETE FROM successions WHERE old = ? AND new = ?", pair)
        else:
            db.execute("INSERT OR IGNORE INTO successions (old, new) VALUES (?, ?)", pair)

    def _succeed(self, db: sqlite3.Connection, old: int, new: int) -> None:
        """Let an example go on with what its predecessor was worth; its gain has to show anew.

        It may have been used itself, where two were stored of one request.
        """
        db.execute("UPDATE successions SET made = 1 WHERE old = ? AND new = ?", (old, new))
        row = db.execute(
            "SELECT rank, uses, ratings, replays, last_used_ms FROM examples WHERE id = ?", (old,)
        ).fetchone()
        if row is not None:
            db.execute(
                "UPDATE examples SET rank = max(rank, ?), uses = uses + ?,"
                " ratings = ratings + ?, replays = max(replays, ?),"
                " last_used_ms = max(last_used_ms, ?),"
                " density = density + max(rank, ?) - rank WHERE id = ?",
                (*row, row[0], new),
            )

    def _close(self, db: sqlite3.Connection, i: int) -> int:
        row = db.execute("SELECT num_bytes FROM examples WHERE id = ?", (i,)).fetchone()
        if row is None:
            return 0
        db.execute("DELETE FROM examples WHERE id = ?", (i,))
        _add_to_totals(db, -1, -row[0])
        return 1

    def _use(
        self, db: sqlite3.Connection, i: int, n: int, credit: float, gain: float, at_ms: int
    ) -> None:
        if n <= 0 or not (math.isfinite(credit) and math.isfinite(gain)):
            raise ValueError(f"expected uses of an example, got {n}, {credit}, {gain}")
        self._credit(db, i, credit, at_ms)
        self._gain(db, i, gain, at_ms)
        db.execute(
            "UPDATE examples SET uses = uses + ?, last_used_ms = ? WHERE id = ?", (n, at_ms, i)
        )

    def _rate_uses(self, db: sqlite3.Connection, event: Event) -> None:
        """Replace the expected quality of an offload by the rated one."""
        ids, score = event.body["example_ids"], float(event.body["score"])
        cost = self._costs.get(event.body["llm"], 1.0)
        if not ids or cost >= 1.0:
            return
        request_id = str(event.body["request_id"])
        earlier = db.execute(
            "SELECT score FROM ratings WHERE request_id = ?", (request_id,)
        ).fetchone()
        before = float(event.body.get("quality", score)) if earlier is None else earlier[0]
        db.execute("REPLACE INTO ratings VALUES (?, ?, ?)", (request_id, score, event.at_ms))
        db.execute("DELETE FROM ratings WHERE at_ms < ?", (event.at_ms - _REMEMBERED_MS,))
        for i in ids:
            self._credit(db, int(i), (score - before) / len(ids), event.at_ms)
            self._gain(db, int(i), (before - score) * cost, event.at_ms)
            db.execute(
                "UPDATE examples SET ratings = ratings + ? WHERE id = ?",
                (int(earlier is None), int(i)),
            )

    def _credit(self, db: sqlite3.Connection, i: int, credit: float, at_ms: int) -> None:
        row = db.execute("SELECT rank, num_bytes FROM examples WHERE id = ?", (i,)).fetchone()
        if row is None or credit == 0.0:
            return
        rank = self._rank(_exp(row[0] - self._age(at_ms)) + credit, at_ms)
        db.execute(
            "UPDATE examples SET rank = ?, density = ? WHERE id = ?",
            (rank, rank - math.log(row[1]), i),
        )

    def _gain(self, db: sqlite3.Connection, i: int, gain: float, at_ms: int) -> None:
        row = db.execute("SELECT gain_rank FROM examples WHERE id = ?", (i,)).fetchone()
        if row is not None and gain != 0.0:
            total = _exp(row[0] - self._age(at_ms)) + gain
            db.execute(
                "UPDATE examples SET gain_rank = ? WHERE id = ?", (self._rank(total, at_ms), i)
            )

    def _rank(self, value: float, at_ms: float) -> float:
        """The logarithm that is kept of a value; that of nothing is very small."""
        return math.log(max(value, _LEAST_VALUE)) + self._age(at_ms)

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction of this thread's own."""
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.Error as error:
            raise UnavailableError(f"example statistics {self._path}: {error}") from error


def _exp(exponent: float) -> float:
    return math.exp(min(exponent, 700.0))


def _exists(db: sqlite3.Connection, i: int) -> bool:
    return db.execute("SELECT 1 FROM examples WHERE id = ?", (i,)).fetchone() is not None


def _meta(db: sqlite3.Connection, key: str, default: str, table: str = "meta") -> str:
    row = db.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
    return default if row is None else str(row[0])


def _set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    db.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))


def _add_to_totals(db: sqlite3.Connection, count: int, num_bytes: int) -> None:
    _set_meta(db, "count", str(int(_meta(db, "count", "0")) + count))
    _set_meta(db, "bytes", str(int(_meta(db, "bytes", "0")) + num_bytes))
