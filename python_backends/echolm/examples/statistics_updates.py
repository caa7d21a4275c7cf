"""The tables of the example statistics, and what each event of the learning log changes in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from echolm.examples.events import CHANGE, FORMER_REPLACEMENT, REPLACEMENT, REPLAY, USAGE
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.primitives import STORED
from echolm.store.base import FRESH_VALUE, NEVER
from echolm.store.checks import MOST_VALUE

_HOUR_MS = 3_600_000.0
EPOCH_MS = 1_735_689_600_000  # 2025-01-01
_LEAST_VALUE = 1e-9
_REMEMBERED_MS = 8 * 24 * 3_600_000  # ratings that a later one of the same answer corrects

META_TABLE = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
TABLES = (
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
    "CREATE TABLE IF NOT EXISTS replacements (old INTEGER PRIMARY KEY, new INTEGER NOT NULL,"
    " logged INTEGER NOT NULL DEFAULT 0)",
)
_REALS = ("rank", "density", "gain_rank")
_COUNTS = ("num_bytes", "created_at_ms", "expires_at_ms", "uses", "ratings", "replays")
_SOUND = " AND ".join(
    [
        *(f"typeof({name}) = 'real' AND abs({name}) < 1e15" for name in _REALS),
        *(f"typeof({name}) = 'integer' AND {name} >= 0" for name in _COUNTS),
        "typeof(quality) = 'real' AND quality BETWEEN 0 AND 1",
        "typeof(tenant) = 'text' AND typeof(source_llm) = 'text'",
        "typeof(last_used_ms) = 'integer'",
    ]
)
"""Holds for a row of ``examples`` as events make them; SQLite takes any type in any column."""
TABLE_NAMES = ("examples", "ratings", "removals", "replacements", "meta")


def meta(db: Connection, key: str, default: str, table: str = "meta") -> str:
    """A value of the table ``meta``."""
    row = db.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
    return default if row is None else str(row[0])


def set_meta(db: Connection, key: str, value: str) -> None:
    """Write a value of the table ``meta``."""
    db.execute("REPLACE INTO meta VALUES (?, ?)", (key, value))


class ForwardDecay:
    """Values that keep the share ``hourly`` each hour, in a form that need not be updated.

    Since all values fade at the same rate, their order changes only where one is added to. Each
    is kept as the logarithm of what it would be if it had grown instead (forward decay: Cormode
    et al., ICDE 2009), its *rank*, so that an index can hold the order for good.
    """

    def __init__(self, hourly: float) -> None:
        self._rate = -math.log(hourly)

    def rank(self, value: float, at_ms: float) -> float:
        """The rank of a value at that time; that of nothing is very small."""
        return math.log(max(value, _LEAST_VALUE)) + self._growth(at_ms)

    def added(self, rank: float, value: float, at_ms: float) -> float:
        """The rank after so much was added to its value at that time."""
        return rank if value == 0.0 else self.rank(self.value(rank, at_ms) + value, at_ms)

    def value(self, rank: float, at_ms: float) -> float:
        """What a rank is worth at that time."""
        return math.exp(min(rank - self._growth(at_ms), 700.0))

    def _growth(self, at_ms: float) -> float:
        return self._rate * (at_ms - EPOCH_MS) / _HOUR_MS


@dataclass(frozen=True)
class StatisticsUpdates:
    """Changes the tables as events say. Each method runs in the caller's transaction.

    ``costs`` holds the relative cost of each LLM; that of the strongest is 1.
    """

    costs: Mapping[str, float]
    decay: ForwardDecay

    def apply(self, db: Connection, event: Event) -> None:
        """Take in one event; others than those about examples change nothing.

        Raises:
            Exception: the event is damaged; what it has changed so far is the caller's to undo.
        """
        body = event.body
        if event.kind == CHANGE:
            self._change(db, event)
        elif event.kind == USAGE:
            for i, n, credit, gain in body["uses"]:
                self._use(db, int(i), int(n), float(credit), float(gain), event.at_ms)
        elif event.kind == RATING:
            self._rate(db, event)
        elif event.kind == REPLAY:
            db.execute(
                "UPDATE examples SET replays = replays + ?, gain_rank = ? WHERE id = ?",
                (int(body["times"]), self.decay.rank(0.0, event.at_ms), int(body["id"])),
            )
            db.execute("DELETE FROM replacements WHERE new = ?", (int(body["id"]),))
        elif event.kind in (REPLACEMENT, FORMER_REPLACEMENT):
            pair = (int(body["old"]), int(body["new"]))
            if body["abandoned"]:
                db.execute("DELETE FROM replacements WHERE old = ? AND new = ?", pair)
            else:  # of several that want the same place the first one has it
                db.execute("INSERT OR IGNORE INTO replacements (old, new) VALUES (?, ?)", pair)

    def add(self, db: Connection, fields: Mapping[str, Any], at_ms: int) -> int:
        """Add an example, described as in a ``CHANGE``; gives 0 if it is there already, else 1."""
        value, quality = float(fields.get("value", FRESH_VALUE)), float(fields["quality"])
        times = int(fields["created_at_ms"]), int(fields.get("expires_at_ms", NEVER))
        usable = 0.0 <= quality <= 1.0 and 0.0 <= value <= MOST_VALUE  # False for NaN
        if not usable or not all(0 <= at <= NEVER for at in times):
            raise ValueError(
                f"expected numbers within their ranges, got {value}, {quality}, {times}"
            )
        rank = self.decay.rank(value, at_ms)
        num_bytes = max(1, int(fields["num_bytes"]))
        added = db.execute(
            "INSERT OR IGNORE INTO examples (id, num_bytes, tenant, source_llm, quality,"
            " created_at_ms, expires_at_ms, rank, density, gain_rank)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                int(fields["id"]),
                num_bytes,
                str(fields["tenant"]),
                str(fields["source_llm"]),
                quality,
                *times,
                rank,
                rank - math.log(num_bytes),
                self.decay.rank(0.0, at_ms),
            ),
        ).rowcount
        _add_to_totals(db, added, added * num_bytes)
        return added

    def _change(self, db: Connection, event: Event) -> None:
        body = event.body
        for fields in body["stored"]:
            self.add(db, fields, event.at_ms)
        # An earlier version wrote the second name.
        for old, new in body.get("replacements", body.get("succeeded", [])):
            _replace(db, int(old), int(new))
        removed = sum(_remove(db, int(i)) for i in body["removed"])
        if removed:
            db.execute(
                "INSERT INTO removals VALUES (?, ?)"
                " ON CONFLICT (reason) DO UPDATE SET number = number + excluded.number",
                (str(body["reason"]), removed),
            )
        for i in body["repeated"]:
            self._credit(db, int(i), FRESH_VALUE, 0.0, event.at_ms)

    def _use(self, db: Connection, i: int, n: int, credit: float, gain: float, at_ms: int) -> None:
        if n <= 0 or max(n, abs(credit), abs(gain)) > MOST_VALUE:
            raise ValueError(f"expected uses of an example, got {n}, {credit}, {gain}")
        self._credit(db, i, credit, gain, at_ms)
        query = "UPDATE examples SET uses = uses + ?, last_used_ms = ? WHERE id = ?"
        db.execute(query, (n, at_ms, i))

    def _rate(self, db: Connection, event: Event) -> None:
        """Replace the expected quality of an offload by the rated one."""
        ids, score = event.body["example_ids"], float(event.body["score"])
        llm = event.body["llm"]
        cost = 0.0 if llm == STORED else self.costs.get(llm, 1.0)
        if not ids or cost >= 1.0:
            return
        request_id = str(event.body["request_id"])
        query = "SELECT score FROM ratings WHERE request_id = ?"
        earlier = db.execute(query, (request_id,)).fetchone()
        before = float(event.body.get("quality", score)) if earlier is None else earlier[0]
        if not (0.0 <= score <= 1.0 and 0.0 <= before <= 1.0):  # NaN as well
            raise ValueError(f"expected a rating of 0 to 1, got {score} after {before}")
        db.execute("REPLACE INTO ratings VALUES (?, ?, ?)", (request_id, score, event.at_ms))
        db.execute("DELETE FROM ratings WHERE at_ms < ?", (event.at_ms - _REMEMBERED_MS,))
        credit, gain = (score - before) / len(ids), (before - score) * cost
        query = "UPDATE examples SET ratings = ratings + ? WHERE id = ?"
        for i in map(int, ids):
            self._credit(db, i, credit, gain, event.at_ms)
            db.execute(query, (int(earlier is None), i))

    def _credit(self, db: Connection, i: int, credit: float, gain: float, at_ms: int) -> None:
        """Add to the value and to the gain of an example, if it is there."""
        query = "SELECT rank, gain_rank, num_bytes FROM examples WHERE id = ?"
        for rank, gain_rank, num_bytes in db.execute(query, (i,)).fetchall():
            rank = self.decay.added(rank, credit, at_ms)
            gain_rank = self.decay.added(gain_rank, gain, at_ms)
            db.execute(
                "UPDATE examples SET rank = ?, density = ?, gain_rank = ? WHERE id = ?",
                (rank, rank - math.log(num_bytes), gain_rank, i),
            )


def remove_damaged(db: Connection) -> int:
    """Remove rows of examples with values that no event leads to; gives how many there were."""
    removed = db.execute(f"DELETE FROM examples WHERE NOT ({_SOUND})").rowcount
    if removed:
        query = "SELECT count(*), coalesce(sum(num_bytes), 0) FROM examples"
        for key, value in zip(("count", "bytes"), db.execute(query).fetchone(), strict=True):
            set_meta(db, key, str(value))
    return removed


def _replace(db: Connection, old: int, new: int) -> None:
    """Let an example go on with what the replaced one was worth; its gain has to show anew.

    It may have been used already, where two were stored of one request.
    """
    db.execute("UPDATE replacements SET logged = 1 WHERE old = ? AND new = ?", (old, new))
    query = "SELECT rank, uses, ratings, replays, last_used_ms FROM examples WHERE id = ?"
    for row in db.execute(query, (old,)).fetchall():
        db.execute(
            "UPDATE examples SET rank = max(rank, ?), uses = uses + ?,"
            " ratings = ratings + ?, replays = max(replays, ?),"
            " last_used_ms = max(last_used_ms, ?),"
            " density = density + max(rank, ?) - rank WHERE id = ?",
            (*row, row[0], new),
        )


def _remove(db: Connection, i: int) -> int:
    row = db.execute("SELECT num_bytes FROM examples WHERE id = ?", (i,)).fetchone()
    if row is None:
        return 0
    db.execute("DELETE FROM examples WHERE id = ?", (i,))
    _add_to_totals(db, -1, -row[0])
    return 1


def _add_to_totals(db: Connection, count: int, num_bytes: int) -> None:
    set_meta(db, "count", str(int(meta(db, "count", "0")) + count))
    set_meta(db, "bytes", str(int(meta(db, "bytes", "0")) + num_bytes))
