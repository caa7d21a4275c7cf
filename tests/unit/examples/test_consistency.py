from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.examples.consistency import Findings, examine, reconcile, repair
from echolm.examples.events import CHANGE, REPLACEMENT, USAGE, change, replacement, usage
from echolm.examples.statistics import StatisticsTable
from echolm.store.base import Example, scope_key
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.store import InMemoryStore


class World:
    def __init__(self, directory: Path) -> None:
        self.store = InMemoryStore(2)
        self.log = MemoryEventLog()
        self.statistics = StatisticsTable(directory / "statistics.sqlite", {"small_llm": 0.1})

    def put(self, id: int, request: str = "", log: bool = True, **changes: Any) -> None:
        values: dict[str, Any] = {
            "response": f"answer {id}",
            "tenant": "t",
            "scope": scope_key("t", ""),
            "source_llm": "large_llm",
            "quality": 0.5,
            "created_at_ms": id,
            "updated_at_ms": id,
        }
        example = Example(id=id, request=request or f"request {id}", **(values | changes))
        self.store.upsert([example], np.ones((1, 2), np.float32))
        if log:
            self.log.append(CHANGE, change([example]))

    def use(self, id: int, times: int) -> None:
        self.log.append(USAGE, usage({id: (times, float(times), 0.0)}))

    def examine(self) -> Findings:
        return examine(self.store, self.statistics, self.log, settle_s=0.0)

    def repair(self, **options: Any) -> Findings:
        return repair(self.store, self.statistics, self.log, **options)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.statistics.close()


def test_where_all_agrees_nothing_is_found_or_changed(world: World) -> None:
    world.put(1)
    world.put(2)
    assert not world.examine().any
    events = world.log.read("", 100)
    assert not world.repair().any
    assert world.log.read("", 100) == events
    assert set(world.store.rows) == {1, 2}


def test_what_differs_is_found_and_left_then_mended_and_gone(world: World) -> None:
    world.put(1, log=False)
    world.put(2)
    world.store.delete([2])
    world.put(3, "Who?")
    world.put(4, "who")
    world.put(5, " WHO ?")
    found = Findings(without_statistics=1, without_example=1, duplicates=2)
    assert world.examine() == world.examine() == found
    assert set(world.store.rows) == {1, 3, 4, 5}
    assert world.repair() == found
    assert not world.examine().any
    assert world.statistics.known([1, 2, 3, 4, 5]) == set(world.store.rows) == {1, 3}
    assert world.statistics.removals() == {"not_in_store": 1, "duplicate": 2}


def test_of_two_the_better_answer_stays_with_what_both_were_used_for(
    world: World, tmp_path: Path
) -> None:
    world.put(1, "who", response="nobody", quality=0.5)
    world.put(2, "who", response="somebody", quality=0.8)
    world.put(3, "who", response="anybody", quality=0.805)  # by too little
    world.use(1, 3)
    world.use(2, 4)
    world.repair()
    assert set(world.store.rows) == {2}
    row = world.statistics.get(2)
    assert row is not None
    assert row.uses == 7
    assert row.value == pytest.approx(4.5, abs=0.01)
    # The log alone has the same.
    again = StatisticsTable(tmp_path / "again.sqlite", {"small_llm": 0.1})
    again.follow(world.log)
    copy = again.get(2)
    again.close()
    assert copy is not None and copy.uses == 7


def test_the_same_answer_does_not_take_the_firsts_place(world: World) -> None:
    world.put(1, "who", response="Somebody!", quality=0.5)
    world.put(2, "who", response="somebody!", quality=0.9)
    world.repair()
    assert set(world.store.rows) == {1}


def test_tenants_and_system_prompts_are_kept_apart(world: World) -> None:
    for id, scope in enumerate((("t", ""), ("u", ""), ("t", "be brief")), start=1):
        world.put(id, "who", tenant=scope[0], scope=scope_key(*scope))
    assert not world.examine().any
    world.repair()
    assert set(world.store.rows) == {1, 2, 3}


def test_where_requests_may_be_stored_twice_they_stay(world: World) -> None:
    world.put(1, "who")
    world.put(2, "who")
    assert not world.repair(deduplicate=False).any
    assert set(world.store.rows) == {1, 2}


def test_a_replacement_that_was_cut_short_is_one_finding_and_is_finished(world: World) -> None:
    world.put(1, "who")
    world.use(1, 3)
    world.log.append(REPLACEMENT, replacement(1, 2))
    world.put(2, "who", log=False)
    # There are no statistics of the new one yet, and it is no duplicate.
    assert world.examine() == Findings(without_statistics=1, interrupted=1)
    assert world.repair() == Findings(interrupted=1)
    assert set(world.store.rows) == {2}
    row = world.statistics.get(2)
    assert row is not None and row.uses == 3
    assert not world.examine().any


def test_what_a_server_is_just_doing_is_no_finding(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put(1)
    world.put(2, "who", log=False)
    world.put(3, "who")
    world.put(4, log=True)
    world.store.delete([4])

    def settle(seconds: float) -> None:
        world.put(2, "who")
        world.store.delete([3])
        world.log.append(CHANGE, change(removed=[3, 4], reason="replaced"))

    monkeypatch.setattr("echolm.examples.consistency.time.sleep", settle)
    assert not world.examine().any


def test_a_repair_that_is_cut_short_between_log_and_store_is_made_good(world: World) -> None:
    world.put(1, "who")
    world.put(2, "who")
    world.use(2, 3)

    class Killed(BaseException):
        pass

    def delete(ids: object) -> None:
        raise Killed

    world.store.delete = delete  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        world.repair()
    del world.store.delete
    assert world.examine().any
    world.repair()
    assert not world.examine().any
    assert set(world.store.rows) == {1}
    row = world.statistics.get(1)
    assert row is not None and row.uses == 3


def test_damaged_rows_are_found_and_removed_and_stop_nothing(world: World) -> None:
    world.put(1)
    good, embedding = world.store.rows[1]
    world.store.rows[2] = replace(good, id=2, value=math.nan), embedding
    world.store.rows[3] = replace(good, id=3, quality=math.inf), embedding
    for _ in range(2):
        assert world.examine() == Findings(damaged=2)
    reconcile(world.store, world.statistics, world.log)
    assert world.statistics.known([1, 2, 3]) == {1}
    assert world.repair() == Findings(damaged=2)
    assert set(world.store.rows) == {1}
    assert not world.examine().any


@pytest.mark.parametrize("damage", [{"quality": math.nan}, {"value": math.inf}, {"id": 2**70}])
def test_a_damaged_event_leaves_the_statistics_of_all_others(
    world: World, damage: dict[str, Any]
) -> None:
    world.put(1)
    body = change([world.store.rows[1][0]])
    body["stored"] = [{**body["stored"][0], "id": 2, **damage}]
    world.log.append_raw(CHANGE, json.dumps(body).encode())
    world.put(3)
    world.statistics.follow(world.log)
    assert world.statistics.known([1, 2, 3]) == {1, 3}
    assert world.statistics.skipped == 1


def test_adopting_leaves_out_what_cannot_be_counted(world: World) -> None:
    world.put(1, log=False)
    [fields] = change([world.store.rows[1][0]])["stored"]
    damaged = [{**fields, "id": 2, "value": math.nan}, {**fields, "id": "x"}, {"id": 3}]
    assert world.statistics.adopt([*damaged, fields]) == 1
    assert world.statistics.known([1, 2, 3]) == {1}
    assert world.statistics.totals()[0] == 1


@pytest.mark.parametrize(
    ("column", "value"), [("rank", "x"), ("density", math.inf), ("quality", 7.0), ("uses", "many")]
)
def test_a_damaged_row_of_the_statistics_is_made_anew(
    world: World, tmp_path: Path, column: str, value: object
) -> None:
    world.put(1)
    world.put(2)
    world.statistics.follow(world.log)
    with sqlite3.connect(tmp_path / "statistics.sqlite") as db:
        db.execute(f"UPDATE examples SET {column} = ? WHERE id = 2", (value,))
    before = world.statistics.totals()
    world.repair()
    assert world.statistics.totals() == before
    assert [e.quality for e in world.statistics.ranked("density", 5)] == [0.5, 0.5]
    assert {e.uses for e in world.statistics.ranked("uses", 5)} == {0}
