from __future__ import annotations

import math
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from echolm.errors import UnavailableError
from echolm.examples.events import CHANGE, REPLACEMENT, REPLAY, USAGE, change, replacement, usage
from echolm.examples.statistics import ExampleStatistics, Replacement, StatisticsTable
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.store.base import FRESH_VALUE, Example
from echolm.testing.event_log import MemoryEventLog

COSTS = {"small": 0.1, "large": 1.0}
HOUR = 3_600_000
START_MS = 1_790_000_000_000


class ScriptedLog:
    """A learning log with times of its own."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: str, body: dict[str, Any], hours: float = 0.0) -> None:
        at = START_MS + int(hours * HOUR)
        self.events.append(Event(str(len(self.events) + 1), kind, body, at))

    def read(self, after: str, limit: int) -> list[Event]:
        first = int(after or 0)
        return self.events[first : first + limit]

    def load_snapshot(self, name: str) -> None:
        return None


@pytest.fixture
def log() -> ScriptedLog:
    return ScriptedLog()


Open = Callable[..., StatisticsTable]


@pytest.fixture
def open_table(tmp_path: Path) -> Iterator[Open]:
    opened: list[StatisticsTable] = []

    def make(hours: float = 0.0, decay: float = 0.9) -> StatisticsTable:
        now = START_MS + int(hours * HOUR)
        statistics = StatisticsTable(tmp_path / "statistics.sqlite", COSTS, decay, lambda: now)
        opened.append(statistics)
        return statistics

    yield make
    for statistics in opened:
        statistics.close()


def example(id: int, size: int = 10, **changes: Any) -> Example:
    values: dict[str, Any] = {
        "request": "q",
        "response": "a" * (size - 1),
        "tenant": "t",
        "scope": 1,
        "source_llm": "large",
        "quality": 0.9,
        "created_at_ms": START_MS,
        "updated_at_ms": START_MS,
    }
    return Example(id=id, **(values | changes))


def rating(score: float, ids: list[int], request_id: str = "r", **changes: Any) -> dict[str, Any]:
    values = {"request_id": request_id, "llm": "small", "example_ids": ids, "quality": 0.8}
    return {**values, "score": score, **changes}


def of(statistics: StatisticsTable, id: int) -> ExampleStatistics:
    found = statistics.get(id)
    assert found is not None
    return found


def follow(statistics: StatisticsTable, log: ScriptedLog) -> int:
    return statistics.follow(log)  # type: ignore[arg-type]


def test_stored_and_removed_examples_are_counted(log: ScriptedLog, open_table: Open) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1, 10), example(2, 20)]))
    log.add(CHANGE, change([example(3, 30)], removed=[1, 99], reason="replaced"))
    assert follow(statistics, log) == 2
    assert statistics.totals() == (2, 50)
    assert statistics.known([1, 2, 3]) == {2, 3}
    assert statistics.removals() == {"replaced": 1}


def test_the_same_event_twice_counts_once(log: ScriptedLog, open_table: Open) -> None:
    statistics = open_table()
    for _ in range(2):
        log.add(CHANGE, change([example(1, 10)]))
        log.add(CHANGE, change(removed=[2], reason="evicted"))
    follow(statistics, log)
    assert statistics.totals() == (1, 10)
    assert statistics.removals() == {}


def test_an_offload_is_worth_its_share_and_fades(log: ScriptedLog, open_table: Open) -> None:
    log.add(CHANGE, change([example(1)]))
    log.add(USAGE, usage({1: (4, 2.0, 0.2)}), hours=1)
    follow(open_table(), log)
    late = open_table(hours=3)
    expected = (FRESH_VALUE * 0.9 + 2.0) * 0.9**2
    assert of(late, 1).value == pytest.approx(expected)
    assert of(late, 1).uses == 4


def test_values_keep_their_order_for_years(log: ScriptedLog, open_table: Open) -> None:
    log.add(CHANGE, change([example(1), example(2)]))
    log.add(USAGE, usage({1: (1, 1.0, 0.0)}), hours=24 * 365 * 3)
    statistics = open_table(hours=24 * 365 * 3)
    follow(statistics, log)
    assert of(statistics, 1).value == pytest.approx(1.0)
    assert of(statistics, 2).value == pytest.approx(0.0)
    assert statistics.least_worth(1, 0, 10) == [(2, 10)]


def test_a_rating_of_an_answer_from_the_store_counts_for_its_example(
    log: ScriptedLog, open_table: Open
) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1)]))
    log.add(USAGE, usage({1: (1, 0.8, 0.0)}))
    log.add(RATING, rating(0.0, [1], llm="stored"))
    follow(statistics, log)
    assert of(statistics, 1).value == pytest.approx(FRESH_VALUE)
    assert of(statistics, 1).ratings == 1
    assert of(statistics, 1).gain == pytest.approx(0.0, abs=1e-6), "there is no LLM to do better"


def test_a_rating_replaces_what_was_expected(log: ScriptedLog, open_table: Open) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1), example(2)]))
    log.add(USAGE, usage({1: (1, 0.4, 0.02), 2: (1, 0.4, 0.02)}))
    log.add(RATING, rating(0.0, [1, 2]))
    follow(statistics, log)
    assert of(statistics, 1).value == pytest.approx(FRESH_VALUE)
    assert of(statistics, 1).ratings == 1
    log.add(RATING, rating(1.0, [1, 2]))
    follow(statistics, log)
    assert of(statistics, 1).value == pytest.approx(FRESH_VALUE + 0.5)
    assert of(statistics, 1).ratings == 1


def test_poor_answers_of_a_costly_llm_are_what_replay_gains_most_from(
    log: ScriptedLog, open_table: Open
) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1), example(2)]))
    expected = (1.0 - 0.8) * 0.1  # as the ratings say, too
    log.add(USAGE, usage({1: (30, 1.0, 30 * expected), 2: (30, 1.0, 30 * expected)}))
    for n in range(30):
        log.add(RATING, rating(0.2, [1], f"a{n}"))
        log.add(RATING, rating(1.0, [2], f"b{n}"))
    follow(statistics, log)
    assert of(statistics, 1).gain == pytest.approx(30 * 0.8 * 0.1, rel=0.01)
    assert of(statistics, 2).gain == pytest.approx(0.0, abs=1e-3)
    assert [a.id for a in statistics.ranked("gain", 10)] == [1, 2]


def test_an_example_used_often_has_more_to_gain_and_that_fades(
    log: ScriptedLog, open_table: Open
) -> None:
    log.add(CHANGE, change([example(1), example(2)]))
    log.add(USAGE, usage({1: (9, 1.0, 0.18), 2: (1, 0.1, 0.05)}))
    log.add(USAGE, usage({1: (1, 0.1, 0.02)}), hours=1)
    statistics = open_table(hours=1)
    follow(statistics, log)
    assert [a.id for a in statistics.ranked("gain", 10)] == [1, 2]
    assert of(statistics, 1).gain == pytest.approx(0.18 * 0.9 + 0.02)
    assert of(statistics, 2).gain == pytest.approx(0.05 * 0.9)


def test_a_file_of_another_version_is_made_anew(log: ScriptedLog, tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        db.execute("INSERT INTO meta VALUES ('version', '0 0.9'), ('position', '77')")
        db.execute("CREATE TABLE examples (id INTEGER PRIMARY KEY)")
    db.close()
    log.add(CHANGE, change([example(1)]))
    statistics = StatisticsTable(path, {})
    assert follow(statistics, log) == 1
    assert statistics.totals() == (1, 10)
    statistics.close()


def test_answers_of_the_strongest_llm_are_no_offloads(log: ScriptedLog, open_table: Open) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1)]))
    log.add(RATING, rating(0.0, [1], llm="large"))
    follow(statistics, log)
    assert of(statistics, 1).ratings == 0


def test_least_worth_goes_by_value_per_byte(log: ScriptedLog, open_table: Open) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1, 100), example(2, 10), example(3, 50)]))
    log.add(USAGE, usage({1: (9, 9.0, 0.0), 3: (1, 1.0, 0.0)}))
    follow(statistics, log)
    # Densities: 9.5 / 100, 0.5 / 10, 1.5 / 50.
    assert statistics.least_worth(2, 0, 10) == [(3, 50), (2, 10)]
    assert statistics.least_worth(0, 55, 10) == [(3, 50), (2, 10)]
    assert statistics.least_worth(0, 50, 10) == [(3, 50)]
    assert statistics.least_worth(3, 0, 2) == [(3, 50), (2, 10)]
    assert statistics.least_worth(0, 0, 10) == []


def test_a_repeated_interaction_makes_its_example_worth_more(
    log: ScriptedLog, open_table: Open
) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1)]))
    log.add(CHANGE, change(repeated=[1, 99]))
    follow(statistics, log)
    assert of(statistics, 1).value == pytest.approx(2 * FRESH_VALUE)


def test_expired_examples_are_found_the_oldest_first(log: ScriptedLog, open_table: Open) -> None:
    statistics = open_table()
    log.add(
        CHANGE, change([example(1, expires_at_ms=30), example(2, expires_at_ms=20), example(3)])
    )
    follow(statistics, log)
    assert statistics.expired(30, 10) == [2, 1]
    assert statistics.expired(29, 10) == [2]
    assert statistics.expired(30, 1) == [2]


def test_a_table_goes_on_where_it_ended(log: ScriptedLog, open_table: Open) -> None:
    log.add(CHANGE, change([example(1)]))
    log.add(USAGE, usage({1: (1, 1.0, 0.0)}))
    assert follow(open_table(), log) == 2
    again = open_table()
    assert follow(again, log) == 0
    assert of(again, 1).uses == 1


def test_another_decay_makes_the_table_anew(log: ScriptedLog, open_table: Open) -> None:
    log.add(CHANGE, change([example(1)]))
    follow(open_table(), log)
    other = open_table(hours=1, decay=0.5)
    assert other.totals() == (0, 0)
    assert follow(other, log) == 1
    assert of(other, 1).value == pytest.approx(FRESH_VALUE * 0.5)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CHANGE, {"stored": [{"id": 1}], "removed": [], "reason": "", "repeated": []}),
        (CHANGE, {}),
        (USAGE, {"uses": [[1, 0, 1.0, 0.0]]}),
        (USAGE, {"uses": [[1, 1, math.nan, 0.0]]}),
        (USAGE, {"uses": "none"}),
        (USAGE, {"uses": [[1, 1, 1.0, 0.0], [1, math.inf, 1.0, 0.0]]}),
        (CHANGE, {"stored": [[1]], "removed": [], "reason": "", "repeated": []}),
        (REPLAY, {"id": 2**70, "times": 1}),
        (RATING, {"score": 1.0}),
    ],
)
def test_a_damaged_event_is_skipped_and_counted(
    log: ScriptedLog, open_table: Open, kind: str, body: dict[str, Any]
) -> None:
    statistics = open_table()
    log.add(CHANGE, change([example(1)]))
    log.add(kind, body)
    log.add(USAGE, usage({1: (1, 1.0, 0.0)}))
    follow(statistics, log)
    assert statistics.skipped == 1
    assert of(statistics, 1).value == pytest.approx(FRESH_VALUE + 1.0)


def test_examples_of_before_the_log_are_adopted_once(open_table: Open) -> None:
    statistics = open_table()
    stored = change([example(1, 10), example(2, 20)])["stored"]
    assert statistics.adopt(stored) == 2
    assert statistics.adopt(stored) == 0
    assert statistics.totals() == (2, 30)


def test_replacements_that_an_earlier_version_logged_are_understood(
    log: ScriptedLog, open_table: Open
) -> None:
    table = open_table()
    log.add(CHANGE, change([example(1)]))
    log.add(USAGE, usage({1: (4, 1.0, 0.0)}))
    log.add("succession", {"old": 1, "new": 2, "abandoned": False})
    follow(table, log)
    assert table.replacements() == [Replacement(1, 2, logged=False)]
    body = change([example(2)], removed=[1], reason="replayed", replacements=[(1, 2)])
    log.add(CHANGE, {**body, "succeeded": body.pop("replacements")})
    follow(table, log)
    assert table.replacements() == [Replacement(1, 2, logged=True)]
    assert of(table, 2).uses == 4


def test_the_snapshot_of_an_earlier_version_stands_for_what_was_removed(tmp_path: Path) -> None:
    log = MemoryEventLog()
    log.append(CHANGE, change([example(1)]))
    log.append(USAGE, usage({1: (4, 1.0, 0.0)}))
    log.append(REPLACEMENT, replacement(1, 2))
    table = StatisticsTable(tmp_path / "statistics.sqlite", COSTS)
    table.save(log)
    position, snapshot = log.load_snapshot(table.snapshot_name) or ("", b"")
    log.drop_snapshot(table.snapshot_name)
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(zlib.decompress(snapshot))
    with closing(sqlite3.connect(copy)) as db:
        db.execute("ALTER TABLE replacements RENAME TO successions")
        db.execute("ALTER TABLE successions RENAME COLUMN logged TO made")
    former = table.snapshot_name.replace("statistics", "ledger")
    log.save_snapshot(former, position, zlib.compress(copy.read_bytes()))
    log.trim(2**62, [position])
    new = StatisticsTable(tmp_path / "new.sqlite", COSTS)
    log.append(USAGE, usage({1: (1, 0.0, 0.0)}))
    assert new.follow(log) == 1
    assert of(new, 1).uses == 5
    assert new.replacements() == [Replacement(1, 2, logged=False)]
    table.close()
    new.close()


def test_a_file_that_is_no_table_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "statistics.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UnavailableError, match=r"example statistics .*statistics\.sqlite: "):
        StatisticsTable(tmp_path / "statistics.sqlite", COSTS)
