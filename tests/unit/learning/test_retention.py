from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import START
from echolm.learning.learner import Learner
from echolm.learning.retention import Retention
from echolm.settings import Settings
from echolm.store.base import Example
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.learning import needed_snapshots
from echolm.wiring.routing import build_bandit
from learning_process import BanditLearning, digest, feedback

DAY = 24 * 3_600_000


class World:
    """A log with a bandit and a table of statistics, whose clock the test turns."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.days = 0.0
        self.log = MemoryEventLog(self.now_ms)
        self.tables: list[StatisticsTable] = []
        self.statistics = self.new_table("first")
        featurizer, self.bandit = build_bandit(Settings())
        learning = BanditLearning(self.bandit, featurizer)
        self.learner = Learner(self.log, [learning], snapshot_every=10)

    def now_ms(self) -> int:
        return 1_800_000_000_000 + int(self.days * DAY)

    def new_table(self, name: str) -> StatisticsTable:
        self.tables.append(StatisticsTable(self.directory / f"{name}.sqlite", {"small_llm": 0.1}))
        return self.tables[-1]

    def retention(self, days: float = 30.0, owner: str = "a", **changes: Any) -> Retention:
        values: dict[str, Any] = {"needed": {"bandit", "statistics"}}
        return Retention(
            self.log,
            days,
            save=lambda: self.statistics.save(self.log),
            owner=owner,
            now_ms=self.now_ms,
            **(values | changes),
        )

    def live(self, events: int = 25) -> None:
        example = Example(7, "q", "a", "t", 1, "large_llm", 0.9, 1, 1)
        self.log.append(CHANGE, change([example]))
        self.log.append(USAGE, usage({7: (3, 2.0, 0.5)}))
        for number in range(events):
            self.log.append(*feedback(number))
        self.learner.catch_up()

    def renew(self) -> None:
        """Save the bandit's snapshot again, as it is every day."""
        found = self.log.load_snapshot(self.learner.snapshot_name)
        assert found is not None
        self.log.save_snapshot(self.learner.snapshot_name, *found, replaces=found[0])

    def sleeper(self) -> StatisticsTable:
        """A table that has missed events which are in the log no more."""
        self.live(1)
        asleep = self.new_table("asleep")
        asleep.follow(self.log)
        self.live(30)
        self.days = 31
        self.renew()
        assert self.retention().trim() > 0
        return asleep


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def left(world: World) -> int:
    return len(world.log.read(START, 1_000))


def test_what_is_young_stays_and_costs_no_snapshot(world: World) -> None:
    world.live()
    world.days = 29
    assert world.retention().trim() == 0
    assert left(world) == 27
    assert [one.name for one in world.log.snapshots()] == [world.learner.snapshot_name]


def test_what_is_old_and_taken_in_goes_and_nothing_is_forgotten(world: World) -> None:
    world.live()
    world.days = 31
    world.renew()
    assert world.retention().trim() == 27
    assert left(world) == 0
    for number in range(25, 30):
        world.log.append(*feedback(number))
    world.learner.catch_up()
    featurizer, bandit = build_bandit(Settings())
    restarted = Learner(world.log, [BanditLearning(bandit, featurizer)], snapshot_every=10)
    restarted.catch_up()
    assert digest(bandit) == digest(world.bandit)
    assert restarted.events == world.learner.events == 32
    # A replica whose file of statistics is new has the same.
    new = world.new_table("new")
    new.follow(world.log)
    world.statistics.follow(world.log)
    row, known = new.get(7), world.statistics.get(7)
    assert row is not None and known is not None
    assert (row.uses, row.ratings) == (known.uses, known.ratings) == (3, 0)
    assert new.totals() == world.statistics.totals() == (1, 2)


def test_what_a_snapshot_has_not_taken_in_stays(world: World) -> None:
    world.live()
    world.days = 31
    world.renew()
    for number in range(25, 30):
        world.log.append(*feedback(number))
    world.learner.catch_up()  # too few for another snapshot
    world.days = 62
    world.renew()
    assert world.retention().trim() == 27
    assert left(world) == 5


def test_without_every_needed_snapshot_nothing_goes(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.live()
    world.days = 31
    world.renew()
    assert world.retention(needed=needed_snapshots(Settings())).trim() == 0
    assert left(world) == 27
    assert "there is no snapshot of " in caplog.text


def test_the_snapshot_of_an_abandoned_configuration_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world.live()
    world.log.save_snapshot("bandit@old", "3", b"")
    world.days = 31
    world.renew()
    assert world.retention().trim() == 27
    assert "snapshot bandit@old is dropped" in caplog.text
    names = {one.name.partition("@")[0] for one in world.log.snapshots()}
    assert names == {"bandit", "statistics"}


def test_the_snapshot_of_another_configuration_in_use_holds_events_back(world: World) -> None:
    world.live()
    world.days = 31
    world.renew()
    world.log.save_snapshot("bandit@other", "3", b"")
    assert world.retention().trim() == 3


def test_it_is_done_once_a_day(world: World) -> None:
    retention = world.retention()
    for day, removed in ((31, 27), (31.5, 0), (32.1, 54)):
        world.days = day - 31
        world.live()
        world.days = day
        world.renew()
        assert retention.trim() == removed


def test_zero_days_are_for_ever(world: World) -> None:
    world.live()
    world.days = 10_000
    assert world.retention(days=0.0).trim() == 0
    assert left(world) == 27


def test_one_replica_at_a_time_does_it(world: World) -> None:
    world.live()
    world.days = 31
    world.renew()
    assert world.log.lease("retention", "another", 60.0)
    assert world.retention().trim() == 0
    assert left(world) == 27


def test_a_table_that_has_missed_events_goes_on_from_the_snapshot(world: World) -> None:
    asleep = world.sleeper()
    world.log.append(USAGE, usage({7: (1, 0.0, 0.0)}))
    for statistics in (asleep, world.statistics):
        statistics.follow(world.log)
        row = statistics.get(7)
        assert row is not None and row.uses == 7


@pytest.mark.parametrize("damaged", [b"", b"nonsense", None])
def test_without_its_snapshot_a_table_is_made_from_log_and_store(
    world: World, damaged: bytes | None
) -> None:
    asleep = world.sleeper()
    name = world.statistics.snapshot_name
    found = world.log.load_snapshot(name)
    assert found is not None
    if damaged is None:
        world.log.drop_snapshot(name)
    else:
        world.log.save_snapshot(name, found[0], damaged, replaces=found[0])
    world.log.append(USAGE, usage({7: (1, 0.0, 0.0)}))
    asleep.follow(world.log)
    assert asleep.totals() == (0, 0)
    assert not asleep.is_complete  # so maintenance looks through the store
