from __future__ import annotations

import math
from itertools import pairwise

import pytest
from echolm.load.bias import load_bias
from echolm.load.tracker import LoadTracker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_bias_is_the_papers() -> None:
    assert load_bias(50, 32, 0.5, 0.3, 0.05) == pytest.approx(0.3 * math.tanh(0.05 * 18) * 0.5)


def test_there_is_no_bias_up_to_the_threshold_and_never_more_than_the_scale() -> None:
    assert load_bias(0, 32, 1.0, 0.3, 0.05) == load_bias(32, 32, 1.0, 0.3, 0.05) == 0
    assert load_bias(1e9, 32, 1.0, 0.3, 0.05) == pytest.approx(0.3)
    biases = [load_bias(load, 32, 1.0, 0.3, 0.05) for load in range(32, 90, 5)]
    assert all(a < b for a, b in pairwise(biases))


def test_a_cheap_llm_is_biased_less() -> None:
    assert load_bias(60, 32, 0.1, 0.3, 0.05) == pytest.approx(
        load_bias(60, 32, 1.0, 0.3, 0.05) / 10
    )


def test_in_flight_counts_per_llm_even_when_a_request_fails() -> None:
    tracker = LoadTracker(clock=Clock())
    with tracker.serving("a"), tracker.serving("a"):
        assert (tracker.in_flight("a"), tracker.in_flight("b")) == (2, 0)
    with pytest.raises(ValueError), tracker.serving("a"):
        raise ValueError
    assert tracker.in_flight("a") == 0


def test_load_follows_in_flight_with_its_half_life() -> None:
    clock = Clock()
    tracker = LoadTracker(half_life_s=2.0, clock=clock)
    with tracker.serving("a"):
        assert tracker.load("a") == pytest.approx(0)
        clock.now += 2
        assert tracker.load("a") == pytest.approx(0.5)
        clock.now += 2
        assert tracker.load("a") == pytest.approx(0.75)
        clock.now += 1_000
        assert tracker.load("a") == pytest.approx(1)
    assert tracker.load("a") == pytest.approx(1)
    clock.now += 2
    assert tracker.load("a") == pytest.approx(0.5)
    assert tracker.load("never") == 0


def test_reading_does_not_change_the_load() -> None:
    def final(reads: int) -> float:
        clock = Clock()
        tracker = LoadTracker(clock=clock)
        with tracker.serving("a"):
            for _ in range(reads):
                clock.now += 3 / reads
                tracker.load("a")
            return tracker.load("a")

    assert final(1) == pytest.approx(final(10))
