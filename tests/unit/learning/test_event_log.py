from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from echolm.errors import UnavailableError
from echolm.learning.sqlite_log import SQLiteEventLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "events.sqlite"


def test_events_come_back_in_order_with_ascending_sequences(path: Path) -> None:
    log = SQLiteEventLog(path)
    sequences = [log.append("rating", {"n": n, "text": "é"}) for n in range(5)]
    events = log.read("", 100)
    assert [e.body["n"] for e in events] == [0, 1, 2, 3, 4]
    assert [e.position for e in events] == sequences
    assert events[0].kind == "rating"
    assert events[0].at_ms > 1_700_000_000_000


def test_reading_starts_after_a_position_and_stops_at_the_limit(path: Path) -> None:
    log = SQLiteEventLog(path)
    sequences = [log.append("k", {"n": n}) for n in range(6)]
    assert [e.body["n"] for e in log.read(sequences[1], 3)] == [2, 3, 4]
    assert log.read(sequences[-1], 3) == []


def test_events_survive_a_reopening(path: Path) -> None:
    first = SQLiteEventLog(path)
    position = first.append("k", {"n": 1})
    first.close()
    again = SQLiteEventLog(path)
    assert [e.body for e in again.read("", 10)] == [{"n": 1}]
    assert again.append("k", {"n": 2}) != position


def test_an_acknowledged_event_survives_the_death_of_its_process(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from echolm.learning.sqlite_log import SQLiteEventLog; "
        "SQLiteEventLog(Path(sys.argv[1])).append('k', {'n': 1}); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -9
    assert [e.body for e in SQLiteEventLog(path).read("", 10)] == [{"n": 1}]


def test_connections_and_threads_write_at_once_and_lose_nothing(path: Path) -> None:
    logs = [SQLiteEventLog(path) for _ in range(2)]

    def write(worker: int) -> None:
        for n in range(25):
            logs[worker % 2].append("k", {"worker": worker, "n": n})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    events = logs[0].read("", 1_000)
    assert events == logs[1].read("", 1_000)
    assert len({(e.body["worker"], e.body["n"]) for e in events}) == len(events) == 100
    for worker in range(4):
        assert [e.body["n"] for e in events if e.body["worker"] == worker] == list(range(25))


def test_a_reader_that_tails_sees_every_event_once(path: Path) -> None:
    """No event may become visible behind one that was already read."""
    log, tail = SQLiteEventLog(path), SQLiteEventLog(path)
    seen: list[str] = []

    def write() -> None:
        for n in range(20):
            log.append("k", {"n": n})

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(write) for _ in range(3)]
        while len(seen) < 60:
            for event in tail.read(seen[-1] if seen else "", 7):
                seen.append(event.position)
        for one in work:
            one.result()
    assert seen == sorted(set(seen), key=int)


@pytest.mark.parametrize("body", ["{not json", "[1, 2]", "null", ""])
def test_a_damaged_body_reads_as_an_empty_event(path: Path, body: str) -> None:
    log = SQLiteEventLog(path)
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO events (kind, body, at_ms) VALUES ('rating', ?, 1)", (body,))
    log.append("rating", {"n": 2})
    assert [dict(e.body) for e in log.read("", 10)] == [{}, {"n": 2}]


def test_a_log_that_cannot_be_used_is_unavailable(path: Path) -> None:
    log = SQLiteEventLog(path)
    log.close()
    with pytest.raises(UnavailableError, match=r"learning log .*; try again"):
        log.append("k", {})
    with pytest.raises(UnavailableError, match="learning log"):
        log.read("", 1)
    path.write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match="learning log"):
        SQLiteEventLog(path)
