"""How far learning from past traffic has come, so that it goes on after any crash.

A log is known by its contents' fingerprint. Judged pairs are known by request and answer, so a log
that has grown, and one that repeats another, cost only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echolm.errors import ConfigurationError
from echolm.sqlite import SQLiteFile

_TABLES = (
    "CREATE TABLE IF NOT EXISTS logs (fingerprint TEXT PRIMARY KEY, stored INTEGER NOT NULL,"
    " counts TEXT NOT NULL, first_id INTEGER)",
    "CREATE TABLE IF NOT EXISTS pairs (id TEXT, llm TEXT, revision TEXT, examples INTEGER,"
    " log TEXT NOT NULL, stage TEXT NOT NULL, answer TEXT NOT NULL, body TEXT NOT NULL,"
    " PRIMARY KEY (id, llm, revision, examples)) WITHOUT ROWID",
)
ANSWERED, JUDGED, LEARNT = "answered", "judged", "learnt"


@dataclass(frozen=True)
class PairKey:
    """One answer that is compared with the logged one.

    Attributes:
        id: of the logged interaction, see ``Logged.id``.
        examples: whether examples were in the prompt.
    """

    id: str
    llm: str
    revision: str
    examples: bool

    @property
    def request_id(self) -> str:
        """By which the learning log knows the answer; what comes twice counts once."""
        revision = f"-{self.revision}" if self.revision else ""
        return f"past-{self.id}-{self.llm}{revision}-{int(self.examples)}"


@dataclass(frozen=True)
class Pair:
    """What is known of a pair.

    Attributes:
        stage: ``answered`` (paid, not judged), ``judged`` (events in the body, perhaps not in the
            learning log), ``learnt``.
        answer: the text, until it is judged.
    """

    key: PairKey
    stage: str
    answer: str
    body: Mapping[str, Any]


class PastTrafficState:
    """The state in a SQLite file; UnavailableError if it cannot be used."""

    def __init__(self, path: Path) -> None:
        self._file = SQLiteFile(
            path,
            "state of learning from past traffic",
            lambda db: [db.execute(table) for table in _TABLES],
            durable=True,  # what it holds was paid for
            pragmas=("secure_delete=ON",),
        )

    def stored(self, fingerprint: str) -> tuple[int, dict[str, int]]:
        """How many of a log's interactions were stored or refused, and the counts of that."""
        query = "SELECT stored, counts FROM logs WHERE fingerprint = ?"
        rows = self._file.rows(query, (fingerprint,))
        return (rows[0][0], json.loads(rows[0][1])) if rows else (0, {})

    def first_id(self, fingerprint: str, new: int) -> int:
        """The id of the next batch's first example: that of one that a crash cut short, or new."""
        insert = "INSERT INTO logs VALUES (?, 0, '{}', ?) ON CONFLICT (fingerprint) DO UPDATE"
        insert += " SET first_id = ifnull(first_id, excluded.first_id) RETURNING first_id"
        return int(self._file.rows(insert, (fingerprint, new))[0][0])

    def batch_stored(self, fingerprint: str, stored: int, counts: Mapping[str, int]) -> None:
        """The batch is in the store; ``stored`` and ``counts`` hold all batches so far."""
        update = "UPDATE logs SET stored = ?, counts = ?, first_id = NULL WHERE fingerprint = ?"
        self._file.rows(update, (stored, json.dumps(counts), fingerprint))

    def pair(self, key: PairKey) -> Pair | None:
        """What is known of a pair; None if nothing is."""
        query = "SELECT stage, answer, body FROM pairs WHERE id = ? AND llm = ? AND revision = ?"
        values = (key.id, key.llm, key.revision, key.examples)
        rows = self._file.rows(f"{query} AND examples = ?", values)
        return Pair(key, rows[0][0], rows[0][1], json.loads(rows[0][2])) if rows else None

    def keep(self, pair: Pair, fingerprint: str) -> None:
        """Keep what is known of a pair now; ``fingerprint`` is of the log that paid for it."""
        key = pair.key
        self._file.rows(
            "INSERT INTO pairs VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " stage = excluded.stage, answer = excluded.answer, body = excluded.body",
            (key.id, key.llm, key.revision, key.examples, fingerprint)
            + (pair.stage, pair.answer, json.dumps(pair.body)),
        )

    def spent(self, fingerprint: str) -> Iterator[Pair]:
        """All pairs that were paid for because of a log."""
        query = "SELECT id, llm, revision, examples, stage, answer, body FROM pairs WHERE log = ?"
        for id, llm, revision, examples, stage, answer, body in self._file.rows(
            query, (fingerprint,)
        ):
            key = PairKey(id, llm, revision, bool(examples))
            yield Pair(key, stage, answer, json.loads(body))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class OnlyProcess:
    """Holds the right to learn from past traffic into a data directory, until it is closed.

    The right ends with the process, however that ends.

    Raises:
        ConfigurationError: another process has it.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(path, "wb")  # noqa: SIM115 - open as long as the right is held
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise ConfigurationError(
                f"{path}: expected no other `echolm learn-from` on this data directory, got one "
                "that runs; wait for its end, or stop it"
            ) from error

    def close(self) -> None:
        """Give the right back."""
        self._stream.close()
