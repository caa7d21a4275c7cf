"""``kill -9`` at any moment: acknowledged events stay, and all learners agree."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import START, EventLog
from echolm.learning.learner import Learner
from echolm.learning.retention import Retention
from echolm.settings import Settings
from echolm.store.base import Example
from echolm.testing.event_log import MemoryEventLog
from echolm.wiring.learning import open_event_log
from event_log_contract import FOR_EVER
from learning_process import BanditLearning, build_bandit, digest, feedback, put_damaged
from redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)

PROCESS = Path(__file__).parents[1] / "learning_process.py"
ROUNDS = 10


_running: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """A test that fails leaves no process either."""
    yield
    for process in _running:
        process.kill()
        process.wait()
    _running.clear()


class Process:
    """A ``learning_process.py``; its lines are read while it runs."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROCESS), *arguments], stdout=subprocess.PIPE, text=True
        )
        _running.append(self._process)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # one that the kill cut short was not reported
                self.lines.append(line.strip())

    def kill(self) -> list[str]:
        self._process.kill()
        return self.wait()

    def wait(self) -> list[str]:
        """All lines, once it has ended."""
        self._process.wait(60)
        self._reader.join()
        return self.lines


@pytest.fixture(params=["sqlite", "redis"])
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "events.sqlite")
    server: RedisServer = request.getfixturevalue("own_redis_server")
    return server.url


@contextmanager
def opened(log_url: str) -> Iterator[EventLog]:
    log = open_event_log(Settings(event_log=log_url))
    try:
        yield log
    finally:
        log.close()


def numbers_behind(log_url: str, position: str) -> tuple[list[int], str]:
    """Numbers of the events behind the position, and the last one's position."""
    with opened(log_url) as log:
        events = log.read(position, 1_000_000)
    return [e.body["n"] for e in events], events[-1].position if events else position


def check(acknowledged: list[str], found: list[int]) -> None:
    """All that was acknowledged is there, in order; one event more may have been stored."""
    known = [int(line) for line in acknowledged]
    assert known == list(range(len(known)))
    assert found in (known, [*known, len(known)])


def test_acknowledged_events_survive_the_death_of_their_process(log_url: str) -> None:
    moments = random.Random(1)
    position, total = START, 0
    for _ in range(ROUNDS):
        process = Process("append", log_url)
        while not numbers_behind(log_url, position)[0]:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.15))
        acknowledged = process.kill()
        found, position = numbers_behind(log_url, position)
        check(acknowledged, found)
        total += len(acknowledged)
    assert total > ROUNDS
    assert len(numbers_behind(log_url, START)[0]) >= total


def test_acknowledged_events_survive_the_death_of_the_redis_server(
    own_redis_server: RedisServer,
) -> None:
    moments = random.Random(2)
    position, total = START, 0
    for _ in range(ROUNDS):
        process = Process("append", own_redis_server.url)
        while not numbers_behind(own_redis_server.url, position)[0]:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.15))
        own_redis_server.kill()
        acknowledged = process.wait()
        own_redis_server.start()
        found, position = numbers_behind(own_redis_server.url, position)
        check(acknowledged, found)
        total += len(acknowledged)
    assert total > ROUNDS


def test_learners_and_one_that_was_killed_reach_identical_posteriors(log_url: str) -> None:
    """Two processes learn while feedback comes; a third is killed and starts from a snapshot."""
    count = 400
    every = 50
    with opened(log_url) as log:
        arguments = ("learn", log_url, str(count + 3), str(every))
        steady = [Process(*arguments) for _ in range(2)]
        victim = Process(*arguments)
        for number in range(count):
            log.append(*feedback(number))
            if number == 200:
                put_damaged(log_url)
            if number == 250:
                while not victim.lines or not log.snapshots():
                    time.sleep(0.02)
                assert victim.kill()
        restarted = Process(*arguments)
        results = {process.wait()[-1] for process in (*steady, restarted)}
        featurizer, bandit = build_bandit(Settings())
        replayed = Learner(log, [BanditLearning(bandit, featurizer)])
        replayed.catch_up()
    assert replayed.applied == count
    assert (replayed.skipped, replayed.ignored) == (2, 1)
    assert results == {f"{count} 2 1 {digest(bandit)}"}
    skipped_by_snapshot, _, _ = restarted.lines[0].partition(" + ")
    assert int(skipped_by_snapshot) >= every


def test_learners_agree_while_what_snapshots_have_taken_in_is_removed(log_url: str) -> None:
    """Whether they had begun before, slept meanwhile, or start when most of the log is gone."""
    count, removed = 400, 0
    arguments = ("learn", log_url, str(count), "20")
    whole = MemoryEventLog()
    with opened(log_url) as log:
        processes = [Process(*arguments) for _ in range(2)]
        victim = Process(*arguments)
        for number in range(count):
            log.append(*feedback(number))
            whole.append(*feedback(number))
            if snapshots := log.snapshots():
                removed += log.trim(FOR_EVER, [one.position for one in snapshots])
            if number == 250:
                while not victim.lines or not log.snapshots():
                    time.sleep(0.02)
                assert victim.kill()
                processes.append(Process(*arguments))
            time.sleep(0.005)
        processes.append(Process(*arguments))
        results = {process.wait()[-1] for process in processes}
        left = len(log.read(START, count))
    featurizer, bandit = build_bandit(Settings())
    Learner(whole, [BanditLearning(bandit, featurizer)]).catch_up()
    assert results == {f"{count} 0 0 {digest(bandit)}"}
    assert removed > count // 4
    assert left == count - removed


def test_what_is_kept_too_long_goes_and_a_new_replica_knows_it_all_the_same(
    log_url: str, tmp_path: Path
) -> None:
    costs = {"small_llm": 0.1}
    first, second = (StatisticsTable(tmp_path / f"{name}.sqlite", costs) for name in "ab")
    with opened(log_url) as log:
        log.append(CHANGE, change([Example(1, "q", "a", "t", 1, "large_llm", 0.9, 1, 1)]))
        for number in range(30):
            log.append(*feedback(number))
            log.append(USAGE, usage({1: (1, 0.1, 0.1)}))
        (features, bandit), (others, other) = (build_bandit(Settings()) for _ in range(2))
        learner = Learner(log, [BanditLearning(bandit, features)], snapshot_every=5)
        learner.catch_up()
        first.follow(log)
        time.sleep(0.05)
        retention = Retention(
            log,
            retention_days=1e-7,  # 9 ms
            needed={"bandit", "statistics"},
            save=lambda: first.save(log),
            owner="a",
        )
        assert retention.trim() == learner.events == 61
        log.append(USAGE, usage({1: (1, 0.1, 0.1)}))
        log.append(*feedback(30))
        restarted = Learner(log, [BanditLearning(other, others)], snapshot_every=5)
        for one in (learner, restarted):
            one.catch_up()
        assert digest(other) == digest(bandit)
        assert restarted.events == learner.events == 63
        first.follow(log)
        second.follow(log)
        now, then = first.get(1), second.get(1)
    assert now is not None and then is not None
    assert now.uses == then.uses == 31
    assert now.ratings == then.ratings > 0
    assert now.value == pytest.approx(then.value)
    first.close()
    second.close()
