from __future__ import annotations

import math

import numpy as np
import pytest
from echolm.learning.event_log import Event
from echolm.learning.learner import Learner, OutdatedError
from echolm.learning.request_sample import NewestStatistics, RequestSample
from echolm.learning.request_statistics import REQUEST_STATISTICS, RequestStatistics
from echolm.learning.snapshot import pack, unpack
from echolm.testing.event_log import MemoryEventLog
from numpy.typing import NDArray

_DAY_MS = 24 * 3_600_000


def requests(n: int, seed: int = 0, dimension: int = 8) -> list[NDArray[np.float32]]:
    rows = np.random.default_rng(seed).standard_normal((n, dimension)).astype(np.float32)
    return list(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class Process:
    """One of several processes that see requests, on a log of them all."""

    def __init__(self, log: MemoryEventLog, name: str = "a") -> None:
        self.newest = NewestStatistics(8)
        self.learner = Learner(log, [self.newest])
        self.now_ms = 1_000_000_000_000
        self.sample = RequestSample(log, self.newest, name, lambda: self.now_ms)

    def see(self, n: int, seed: int = 0) -> bool:
        """Whether new statistics are logged after n more requests."""
        self.sample.add(requests(n, seed), [0.5] * n, [100] * n)
        logged = self.sample.log_if_due()
        self.learner.catch_up()
        return logged


def test_statistics_are_logged_at_64_requests_and_each_time_that_four_times_as_many_are_held() -> (
    None
):
    process = Process(MemoryEventLog())
    counts = []
    for k in range(1_000):
        if process.see(8, seed=k):
            counts.append(process.newest.statistics.count)
    assert counts == [64, 256, 1_024, 4_096]
    assert process.newest.version == 4
    assert process.newest.statistics.nearest == (0.5, 0.5, 0.5)


def test_after_a_day_they_are_made_anew_of_as_many_requests() -> None:
    log = MemoryEventLog()
    process = Process(log)
    assert process.see(64)
    process.now_ms = process.newest.at_ms + _DAY_MS
    again = Process(log)
    again.now_ms = process.now_ms
    again.learner.catch_up()
    assert not again.see(63, seed=1), "it has seen less than they were made of"
    assert process.see(8, seed=2)
    assert process.newest.version == 2
    assert process.newest.statistics.count == 72


def test_of_two_processes_one_logs_them_and_both_know() -> None:
    log = MemoryEventLog()
    one, two = Process(log, "one"), Process(log, "two")
    assert one.see(64)
    assert not two.see(64, seed=1)
    assert one.newest.version == two.newest.version == 1
    assert np.array_equal(one.newest.statistics.components, two.newest.statistics.components)


def test_statistics_that_another_process_was_faster_with_are_outdated() -> None:
    log = MemoryEventLog()
    process = Process(log)
    process.see(64)
    [event] = log.read("", 10)
    with pytest.raises(OutdatedError, match="version 1"):
        process.newest.apply(event)


def test_requests_without_any_candidate_count_without_a_nearest_one() -> None:
    process = Process(MemoryEventLog())
    process.sample.add(requests(64), [0.7] * 40 + [float("nan")] * 24, [100] * 64)
    assert process.sample.log_if_due()
    process.learner.catch_up()
    assert process.newest.statistics.count == 64
    assert process.newest.statistics.nearest == pytest.approx((0.7, 0.7, 0.7))


def test_of_equal_requests_there_are_no_statistics() -> None:
    process = Process(MemoryEventLog())
    process.sample.add(requests(1) * 64, [1.0] * 64, [100] * 64)
    assert not process.sample.log_if_due()
    assert not process.see(64), "not looked at again at once"
    process.now_ms += 3_600_000
    assert process.see(1)


def test_statistics_of_another_embedding_model_are_not_used_and_others_follow() -> None:
    process = Process(MemoryEventLog())
    other = Process(MemoryEventLog())
    other.see(64)
    body = {**other.newest.statistics.body(), "version": 7}
    three = NewestStatistics(3)
    three.apply(Event("1", REQUEST_STATISTICS, body, 5))
    assert (three.version, three.statistics.version) == (7, 0)
    process.newest.apply(Event("1", REQUEST_STATISTICS, body, 5))
    assert process.newest.statistics.version == 7


def test_a_restored_one_goes_on_as_the_saved_one() -> None:
    process = Process(MemoryEventLog())
    for seen in (0, 64):
        if seen:
            process.see(seen)
        restored = NewestStatistics(8)
        restored.restore(unpack(pack(process.newest.state())))
        assert pack(restored.state()) == pack(process.newest.state())
        assert restored.version == process.newest.version
    broken = Event("9", REQUEST_STATISTICS, {"version": 9}, 0)
    with pytest.raises(KeyError):
        restored.apply(broken)


def test_a_request_counts_only_while_it_is_among_the_last_4096_requests() -> None:
    process = Process(MemoryEventLog())
    process.sample.add(requests(4_096), [0.1] * 4_096, [100] * 4_096)
    process.sample.add(requests(4_096, seed=1), [0.9] * 4_096, [400] * 4_096)
    assert process.sample.log_if_due()
    process.learner.catch_up()
    assert process.newest.statistics.nearest == pytest.approx((0.9, 0.9, 0.9))
    assert process.newest.statistics.log_lengths == pytest.approx((math.log(401),) * 3, abs=1e-4)


def test_a_request_that_is_repeated_does_not_make_unrelated_ones_alike() -> None:
    different = Process(MemoryEventLog())
    different.sample.add(requests(100), [0.7] * 100, [100] * 100)
    assert different.sample.log_if_due()
    probed = Process(MemoryEventLog())
    probed.sample.add(requests(100) + requests(1, seed=9) * 900, [0.7] * 1_000, [100] * 1_000)
    assert probed.sample.log_if_due()
    for process in (different, probed):
        process.learner.catch_up()
    expected = different.newest.statistics.unrelated
    assert probed.newest.statistics.unrelated == pytest.approx(expected, abs=0.05)


def test_of_few_different_requests_the_usual_distance_is_assumed() -> None:
    process = Process(MemoryEventLog())
    process.sample.add(requests(4) * 16, [1.0] * 64, [100] * 64)
    assert process.sample.log_if_due()
    process.learner.catch_up()
    assert process.newest.statistics.unrelated == RequestStatistics.none().unrelated
