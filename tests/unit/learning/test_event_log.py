from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import echolm
import pytest
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.learning.event_log import START, Event, TrimmedError
from echolm.learning.learner import Learner
from echolm.learning.sqlite_log import SQLiteEventLog
from echolm.settings import Settings
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.learning import open_event_log
from event_log_contract import (
    FOR_EVER,
    Damage,
    DurableEventLogContract,
    EventLogContract,
    OpenLog,
)


class TestMemoryEventLog(EventLogContract):
    @pytest.fixture
    def memory(self) -> MemoryEventLog:
        return MemoryEventLog()

    @pytest.fixture
    def open_log(self, memory: MemoryEventLog) -> OpenLog:
        return lambda: memory

    @pytest.fixture
    def damage(self, memory: MemoryEventLog) -> Damage:
        def insert(body: bytes) -> None:
            memory.append_raw("rating", body)

        return insert

    def test_it_can_be_out_of_reach_for_a_while(self, memory: MemoryEventLog) -> None:
        memory.append("k", {"n": 1})
        memory.available = False
        for call in (
            lambda: memory.append("k", {}),
            lambda: memory.read(START, 1),
            lambda: memory.save_snapshot("s", "1", b""),
        ):
            with pytest.raises(UnavailableError):
                call()
        memory.available = True
        assert len(memory.read(START, 10)) == 1


class TestSQLiteEventLog(DurableEventLogContract):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "made" / "events.sqlite"

    @pytest.fixture
    def open_log(self, path: Path) -> OpenLog:
        return lambda: SQLiteEventLog(path)

    @pytest.fixture
    def damage(self, path: Path) -> Damage:
        def insert(body: bytes) -> None:
            # As text and not as a blob, whatever the bytes are.
            with sqlite3.connect(path) as db:
                db.execute(
                    "INSERT INTO events (kind, body, at_ms) VALUES ('rating', CAST(? AS TEXT), 1)",
                    (body,),
                )

        return insert

    @pytest.mark.parametrize(
        "row", [("rating", 5, 1), (b"\xff", "{}", 1), ("rating", "{}", "soon"), (7, 1.5, b"")]
    )
    def test_a_row_of_wrong_types_reads_as_an_empty_event(
        self, path: Path, open_log: OpenLog, row: tuple[object, ...]
    ) -> None:
        log = open_log()
        with sqlite3.connect(path) as db:
            db.execute("INSERT INTO events (kind, body, at_ms) VALUES (?, ?, ?)", row)
        log.append("rating", {"n": 2})
        assert [dict(e.body) for e in log.read(START, 10)] == [{}, {"n": 2}]

    def test_it_reads_the_file_of_an_earlier_version(self, path: Path, open_log: OpenLog) -> None:
        path.parent.mkdir()
        with sqlite3.connect(path) as db:
            db.execute(
                "CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT,"
                " kind TEXT NOT NULL, body TEXT NOT NULL, at_ms INTEGER NOT NULL)"
            )
            db.execute("INSERT INTO events VALUES (41, 'rating', '{\"n\":1}', 1700000000000)")
        log = open_log()
        [event] = log.read(START, 10)
        assert (event.position, event.kind, event.body) == ("41", "rating", {"n": 1})
        assert log.append("k", {"n": 2}) == "42"

    def test_what_was_saved_by_an_earlier_version_has_no_time(
        self, path: Path, open_log: OpenLog
    ) -> None:
        path.parent.mkdir()
        with sqlite3.connect(path) as db:
            db.execute(
                "CREATE TABLE snapshots (name TEXT PRIMARY KEY, position TEXT NOT NULL,"
                " state BLOB NOT NULL)"
            )
            db.execute("INSERT INTO snapshots VALUES ('bandit', '7', x'00')")
        log, other = open_log(), open_log()
        assert [(s.name, s.position, s.saved_at_ms) for s in log.snapshots()] == [
            ("bandit", "7", 0)
        ]
        assert other.load_snapshot("bandit") == ("7", b"\0")
        log.save_snapshot("bandit", "8", b"", replaces="7")
        assert other.snapshots()[0].saved_at_ms > 0

    def test_the_file_shrinks_when_events_are_removed(self, path: Path, open_log: OpenLog) -> None:
        log = open_log()
        log.append("k", {"text": "x" * 1_000})
        with sqlite3.connect(path) as db:
            db.executemany(
                "INSERT INTO events (kind, body, at_ms) VALUES ('k', ?, 1)",
                [('{"text": "' + "x" * 1_000 + '"}',) for _ in range(12_000)],
            )
        last = log.append("k", {"n": 1})
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.stat().st_size
        assert log.trim(FOR_EVER, [last]) == 12_002
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert path.stat().st_size < before / 50

    def test_a_damaged_time_holds_nothing_up(self, path: Path, open_log: OpenLog) -> None:
        log = open_log()
        with sqlite3.connect(path) as db:
            db.execute("INSERT INTO events (kind, body, at_ms) VALUES ('k', '{}', 'soon')")
        last = log.append("k", {"n": 1})
        assert log.trim(FOR_EVER, [last]) == 2

    @pytest.mark.parametrize(
        "row", [(5, b"x", 1), ("abc", b"x", 1), ("7", "text", "soon"), (b"\xff", b"x", b"y")]
    )
    def test_a_damaged_snapshot_is_in_nobody_s_way(
        self, path: Path, open_log: OpenLog, row: tuple[object, ...]
    ) -> None:
        log = open_log()
        last = log.append("k", {"n": 1})
        with sqlite3.connect(path) as db:
            db.execute("INSERT INTO snapshots VALUES ('bandit', ?, ?, ?)", row)
        learner = Learner(log, [Counting()], 1)
        learner.snapshot_name = "bandit"
        for _ in range(2):
            with contextlib.suppress(TrimmedError):
                learner.catch_up()
        assert learner.events == 1
        assert [(s.name, s.position) for s in log.snapshots()] == [("bandit", last)]

    def test_a_damaged_lease_ends(self, path: Path, open_log: OpenLog) -> None:
        log = open_log()
        for until in ("soon", 2**60, b"x"):
            with sqlite3.connect(path) as db:
                db.execute("REPLACE INTO leases VALUES ('work', 'nobody', ?)", (until,))
            assert log.lease("work", "me", 10.0)
            assert not log.lease("work", "you", 10.0)

    def test_an_error_says_to_try_again(self, open_log: OpenLog) -> None:
        log = open_log()
        log.close()
        with pytest.raises(UnavailableError, match=r"learning log .*events\.sqlite: .*; try again"):
            log.append("k", {})

    def test_a_file_that_is_no_log_is_refused(self, path: Path, open_log: OpenLog) -> None:
        path.parent.mkdir()
        path.write_bytes(b"no database" * 100)
        with pytest.raises(UnavailableError, match="learning log"):
            open_log()
        with pytest.raises(UnavailableError, match="learning log"):
            SQLiteEventLog(path / "below-a-file" / "events.sqlite")


def test_the_default_log_is_a_file_in_the_data_directory(tmp_path: Path) -> None:
    open_event_log(Settings(data_dir=tmp_path)).append("k", {"n": 1})
    log = open_event_log(Settings(event_log=str(tmp_path / "events.sqlite")))
    assert [e.body for e in log.read(START, 10)] == [{"n": 1}]


def test_processes_that_make_the_file_at_the_same_time_all_succeed(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from echolm.learning.sqlite_log import SQLiteEventLog
for k in range(40):
    time.sleep(max(0.0, float(sys.argv[2]) + 0.05 * k - time.time()))
    SQLiteEventLog(Path(sys.argv[1]) / str(k) / "events.sqlite").close()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(echolm.__file__).parent.parent)}
    command = [sys.executable, "-c", program, str(tmp_path), str(time.time() + 1.5)]
    processes = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(6)
    ]
    for process in processes:
        assert process.stderr is not None
        problem = process.stderr.read().decode()
        assert process.wait(60) == 0, problem


@pytest.mark.parametrize("body", [b'{"n": NaN}', b'{"n": [-Infinity]}', b'{"n": 1e999}'])
def test_an_event_with_a_number_that_is_not_finite_reads_as_damaged(body: bytes) -> None:
    log = MemoryEventLog()
    log.append_raw("rating", body)
    assert [dict(e.body) for e in log.read(START, 10)] == [{}]


def test_a_number_that_is_not_finite_gets_into_no_log() -> None:
    with pytest.raises(InvalidRequestError, match="finite"):
        MemoryEventLog().append("rating", {"score": float("nan")})


class Counting:
    """Learns how many events there were."""

    name, kinds, fingerprint = "counting", frozenset({"k"}), ""

    def __init__(self) -> None:
        self.number = 0

    def apply(self, event: Event) -> None:
        self.number += 1

    def state(self) -> dict[str, Any]:
        return {"number": self.number}

    def restore(self, state: dict[str, Any]) -> None:
        self.number = state["number"]
