from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest
from echolm.errors import UnavailableError
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.examples.maintenance import Maintenance, choose_victims
from echolm.examples.statistics import StatisticsTable
from echolm.settings import ExamplesSettings
from echolm.store.base import FRESH_VALUE, NEVER, Example
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.store import InMemoryStore

COSTS = {"small": 0.1, "large": 1.0}
NOW = 1_000_000


class World:
    """A store, a log and a table of statistics for each of several replicas."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.store = InMemoryStore(2)
        self.log = MemoryEventLog()
        self.tables: list[StatisticsTable] = []

    def add(self, sizes: Sequence[int], values: Sequence[float], expires: int = NEVER) -> None:
        """Store examples with the ids 1, 2, … that enabled offloads of these values."""
        examples = [
            Example(k, "q", "a" * (size - 1), "t", 1, "large", 0.9, NOW, NOW, expires)
            for k, size in enumerate(sizes, start=1)
        ]
        self.store.dimension = len(examples)
        self.store.upsert(examples, np.eye(len(examples), dtype=np.float32))
        self.log.append(CHANGE, change(examples))
        uses = {k: (1, v - FRESH_VALUE, 0.0) for k, v in enumerate(values, start=1)}
        self.log.append(USAGE, usage(uses))

    def replica(self, name: str = "a", **settings: float) -> Maintenance:
        statistics = StatisticsTable(self.directory / f"{name}.sqlite", COSTS)
        self.tables.append(statistics)
        chosen = ExamplesSettings(**settings)  # type: ignore[arg-type]
        return Maintenance(self.store, statistics, self.log, chosen, name, lambda: 0.7, lambda: NOW)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for statistics in world.tables:
        statistics.close()


def test_nothing_is_removed_within_the_limits(world: World) -> None:
    world.add([10] * 5, [1.0] * 5)
    world.replica(max_stored=5, max_stored_bytes=50).run()
    assert world.store.count() == 5


def test_beyond_the_limit_those_of_least_value_per_byte_go(world: World) -> None:
    world.add([10, 10, 10, 100, 10], [5.0, 1.0, 4.0, 6.0, 3.0])
    keeper = world.replica(max_stored=3, low_watermark=1.0)
    keeper.run()
    assert set(world.store.rows) == {1, 3, 5}
    assert keeper.counts.evicted == 2


def test_a_limit_in_bytes_holds_too_with_room_to_spare(world: World) -> None:
    world.add([10] * 20, range(1, 21))
    world.replica(max_stored_bytes=199, low_watermark=0.8).run()
    assert set(world.store.rows) == set(range(6, 21))
    assert world.tables[0].totals() == (15, 150)


def test_more_than_a_batch_is_removed(world: World) -> None:
    world.add([10] * 1_000, [1.0] * 1_000)
    world.replica(max_stored=100, low_watermark=0.9).run()
    assert world.store.count() == 90


def test_expired_examples_are_removed(world: World) -> None:
    world.add([10] * 300, [1.0] * 300, expires=NOW)
    keeper = world.replica()
    keeper.run()
    assert world.store.count() == 0
    assert keeper.counts.expired == 300
    assert world.tables[0].removals() == {"expired": 300}


def test_one_replica_at_a_time_removes_and_all_know_it(world: World) -> None:
    world.add([10] * 10, range(1, 11))
    first, second = (world.replica(name, max_stored=4, low_watermark=0.5) for name in "ab")
    first.run()
    second.run()
    assert (first.counts.evicted, second.counts.evicted) == (8, 0)
    assert [statistics.totals()[0] for statistics in world.tables] == [2, 2]


def test_it_ends_between_batches_when_asked_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("echolm.examples.maintenance._BATCH", 256)
    world.add([10] * 1_000, [1.0] * 1_000)
    answers = iter([True, True, False])
    world.replica(max_stored=100).run(lambda: next(answers))
    # One look at what is expired, one batch of evictions.
    assert world.store.count() == 1_000 - 256


def test_what_an_outage_interrupts_is_done_later(world: World) -> None:
    world.add([10] * 10, [1.0] * 10)
    keeper = world.replica(max_stored=5, low_watermark=1.0)
    append = world.log.append

    def fail(kind: str, body: object) -> str:
        raise UnavailableError("down")

    world.log.append = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(UnavailableError):
        keeper.run()
    world.log.append = append  # type: ignore[method-assign]
    keeper.run()
    assert world.store.count() == world.tables[0].totals()[0] == 5


@pytest.mark.parametrize("seed", range(5))
def test_eviction_keeps_nearly_what_the_best_knapsack_would(world: World, seed: int) -> None:
    rng = Random(seed)
    sizes = [rng.randint(5, 40) for _ in range(14)]
    values = [rng.uniform(0.1, 5.0) for _ in range(14)]
    capacity = sum(sizes) // 2
    world.add(sizes, values)
    world.replica(max_stored_bytes=capacity, low_watermark=1.0).run()
    kept = sum(values[i - 1] for i in world.store.rows)
    best = max(
        sum(values[k] for k in chosen)
        for r in range(15)
        for chosen in combinations(range(14), r)
        if sum(sizes[k] for k in chosen) <= capacity
    )
    assert sum(sizes[i - 1] for i in world.store.rows) <= capacity
    assert best - kept <= max(values)


def test_examples_of_before_the_log_are_found_at_the_start(world: World) -> None:
    world.add([10] * 5, [1.0] * 5)
    foreign = Example(77, "q", "a" * 9, "t", 1, "large", 0.9, NOW, NOW)
    world.store.upsert([foreign], np.ones((1, 5), np.float32))
    world.store.delete([2, 3])
    keeper = world.replica()
    keeper.run()
    assert world.tables[0].totals() == (4, 40)
    assert world.tables[0].known([1, 2, 3, 4, 5, 77]) == {1, 4, 5, 77}
    assert world.tables[0].removals() == {"not_in_store": 2}


def test_where_both_agree_nothing_is_scanned(world: World) -> None:
    world.add([10] * 5, [1.0] * 5)
    world.replica().run()  # a new statistics looks once
    keeper = world.replica()

    def never(*arguments: object, **options: object) -> object:
        raise AssertionError("scanned")

    world.store.scan = never  # type: ignore[method-assign, assignment]
    keeper.run()
    keeper.run()


def test_what_is_hidden_for_a_moment_is_not_taken_for_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add([10] * 3, [1.0] * 3)
    hidden = world.store.rows.pop(2)

    def settle(seconds: float) -> None:
        world.store.rows[2] = hidden

    monkeypatch.setattr("echolm.examples.maintenance.time.sleep", settle)
    world.replica().run()
    assert world.tables[0].totals()[0] == 3
    assert world.tables[0].removals() == {}


def test_statistics_of_a_store_that_was_emptied_go_while_it_runs(world: World) -> None:
    world.add([10] * 40, [1.0] * 40)
    keeper = world.replica()
    keeper.run()
    world.store.delete(range(1, 40))
    keeper.run()  # what is being removed just now looks the same
    assert world.tables[0].totals() == (40, 400)
    keeper.run()
    assert world.tables[0].totals() == (1, 10)


def test_a_single_example_that_is_being_written_is_no_reason_to_scan(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.add([10] * 40, [1.0] * 40)
    keeper = world.replica()
    keeper.run()
    world.store.delete([1])
    monkeypatch.setattr(world.store, "scan", None)
    for _ in range(3):
        keeper.run()


def test_of_examples_that_help_with_the_same_requests_one_stays(world: World) -> None:
    world.add([10] * 6, [5.0, 4.0, 3.0, 0.6, 0.7, 0.8])
    world.store.dimension = 3
    # 1, 2 and 3 are one kind of request, 5 and 6 another; 4 is alone and worth least.
    for i, (x, y, z) in {1: (1, 0, 0), 2: (1, 0, 0), 3: (1, 0, 0), 4: (0, 1, 0)}.items():
        world.store.rows[i] = (world.store.rows[i][0], np.array([x, y, z], np.float32))
    for i in (5, 6):
        world.store.rows[i] = (world.store.rows[i][0], np.array([0, 0, 1], np.float32))
    world.replica(max_stored=3, low_watermark=1.0).run()
    assert set(world.store.rows) == {1, 4, 6}


def test_victims_are_enough_and_no_more() -> None:
    candidates = [(1, 10), (2, 10), (3, 10), (4, 10)]
    similar = {1: [3], 2: [], 3: [1], 4: [2]}

    def chosen(count: int, num_bytes: int, limit: int = 10) -> list[int]:
        return choose_victims(
            candidates, lambda ids: {i: similar[i] for i in ids}, count, num_bytes, limit
        )

    assert chosen(1, 0) == [1]
    # Only 1 is similar to 3.
    assert chosen(2, 0) == [1, 4]
    assert chosen(0, 25) == [1, 4, 2]
    assert chosen(4, 0, limit=2) == [1, 4]
    assert chosen(0, 0) == []


def test_neighbours_are_looked_up_only_as_long_as_victims_are_missing() -> None:
    candidates = [(i, 10) for i in range(500)]
    asked: list[int] = []

    def neighbours(ids: Sequence[int]) -> dict[int, list[int]]:
        asked.extend(ids)
        return {i: [-1] if i % 2 else [] for i in ids}

    assert choose_victims(candidates, neighbours, 32, 0, 1_000) == list(range(1, 64, 2))
    assert asked == list(range(64))
