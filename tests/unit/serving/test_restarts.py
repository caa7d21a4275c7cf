"""How soon, and how often, what ends by itself is started again."""

from __future__ import annotations

from echolm.serving.restarts import Backoff


def test_pauses_grow_up_to_the_longest() -> None:
    backoff = Backoff(first_s=1.0, longest_s=5.0, good_run_s=60.0)
    assert [backoff.after(0.0) for _ in range(6)] == [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_good_run_earns_a_quick_start() -> None:
    backoff = Backoff(first_s=1.0, good_run_s=60.0)
    assert [backoff.after(run) for run in (0.0, 0.0, 59.0, 60.0, 0.0)] == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_only_starts_in_a_row_are_bounded() -> None:
    backoff = Backoff(first_s=1.0, good_run_s=60.0, most=2)
    assert [backoff.after(100.0) for _ in range(20)] == [0.0] * 20
    assert [backoff.after(0.0) for _ in range(3)] == [1.0, None, None]
    assert backoff.after(60.0) == 0.0


def test_a_long_life_of_early_ends_stays_a_number() -> None:
    backoff = Backoff()
    assert {backoff.after(0.0) for _ in range(5_000)} <= {0.0, 0.5, 1, 2, 4, 8, 16, 32, 60}
