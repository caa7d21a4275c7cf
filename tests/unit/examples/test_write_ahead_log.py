from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from echolm.errors import UnavailableError
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.store.base import Example, Stored

Open = Callable[..., WriteAheadLog]


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Open]:
    opened: list[WriteAheadLog] = []

    def make(capacity: int = 100) -> WriteAheadLog:
        opened.append(WriteAheadLog(tmp_path / "data" / "write_ahead_log.sqlite", capacity))
        return opened[-1]

    yield make
    for write_ahead_log in opened:
        write_ahead_log.close()


def entry(id: int) -> Stored:
    example = Example(id, f"q{id} é", "a\n\x00", "t", 2**62, "large", 0.9, 1, 2)
    return example, np.array([id, 0.1], np.float32)


def test_entries_come_back_in_order_with_all_they_hold(open_log: Open) -> None:
    write_ahead_log = open_log()
    assert write_ahead_log.append([entry(3), entry(1)]) == 2
    assert write_ahead_log.append([entry(2)]) == 1
    found = write_ahead_log.oldest(10)
    assert [example for example, _ in found] == [entry(i)[0] for i in (3, 1, 2)]
    assert [v.tolist() for _, v in found] == [entry(i)[1].tolist() for i in (3, 1, 2)]
    assert [example.id for example, _ in write_ahead_log.oldest(2)] == [3, 1]
    assert len(write_ahead_log) == 3


def test_what_was_kept_is_there_after_a_restart(open_log: Open) -> None:
    first = open_log()
    first.append([entry(1), entry(2)])
    first.remove([1, 99])
    assert [example.id for example, _ in open_log().oldest(10)] == [2]


def test_a_full_log_takes_no_more(open_log: Open) -> None:
    write_ahead_log = open_log(capacity=2)
    assert write_ahead_log.append([entry(1), entry(2), entry(3)]) == 2
    assert write_ahead_log.append([entry(4)]) == 0
    write_ahead_log.remove([1])
    assert write_ahead_log.append([entry(5)]) == 1
    assert [example.id for example, _ in write_ahead_log.oldest(10)] == [2, 5]


def test_a_damaged_entry_does_not_hold_up_the_others(open_log: Open, tmp_path: Path) -> None:
    write_ahead_log = open_log()
    write_ahead_log.append([entry(1), entry(2), entry(3)])
    with sqlite3.connect(tmp_path / "data" / "write_ahead_log.sqlite") as db:
        db.execute("UPDATE pending SET example = '{' WHERE id = 1")
        db.execute("UPDATE pending SET example = '{\"id\": 1}' WHERE id = 2")
    assert [example.id for example, _ in write_ahead_log.oldest(10)] == [3]
    assert len(write_ahead_log) == 1


def test_a_file_that_is_no_log_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "write_ahead_log.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(
        UnavailableError, match=r"example write-ahead log .*write_ahead_log\.sqlite: "
    ):
        WriteAheadLog(tmp_path / "write_ahead_log.sqlite", 10)


def test_what_waits_in_the_file_of_an_earlier_version_is_taken_over(
    open_log: Open, tmp_path: Path
) -> None:
    former = WriteAheadLog(tmp_path / "data" / "examples.journal.sqlite", 10)
    former.append([entry(2), entry(1)])
    log = open_log()
    assert [example for example, _ in log.oldest(10)] == [entry(2)[0], entry(1)[0]]
    assert len(former) == 0
    # A server of the earlier version may go on for a while.
    former.append([entry(3)])
    former.close()
    log.remove([1])
    assert [example.id for example, _ in open_log().oldest(10)] == [2, 3]
    assert [example.id for example, _ in open_log().oldest(10)] == [2, 3]


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_an_unusable_file_of_an_earlier_version_is_left_aside(
    open_log: Open, tmp_path: Path, content: bytes
) -> None:
    former = tmp_path / "data" / "examples.journal.sqlite"
    former.parent.mkdir()
    former.write_bytes(content)
    log = open_log()
    assert log.append([entry(1)]) == 1
    assert [example.id for example, _ in log.oldest(10)] == [1]
    assert former.exists()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("example", "{}"),
        ("example", "[]"),
        ("example", json.dumps({**asdict(entry(1)[0]), "value": math.nan})),
        ("example", json.dumps({**asdict(entry(1)[0]), "request": 5})),
        ("embedding", b"abc"),
        ("embedding", np.array([math.nan], np.float32).tobytes()),
    ],
)
def test_damaged_entries_are_removed_and_hold_nothing_up(
    open_log: Open, tmp_path: Path, column: str, value: object
) -> None:
    write_ahead_log = open_log()
    write_ahead_log.append([entry(i) for i in range(1, 5)])
    with sqlite3.connect(tmp_path / "data" / "write_ahead_log.sqlite") as db:
        db.execute(f"UPDATE pending SET {column} = ? WHERE id < 4", (value,))
    assert [example.id for example, _ in write_ahead_log.oldest(2)] == [4]
    assert len(write_ahead_log) == 1
