from __future__ import annotations

import pytest
from echolm.learning.forgetting import Forgetting


def forgetting(kept: float = 1_000.0) -> Forgetting:
    made = Forgetting(half_life_ms=1_000.0, least_kept=100.0)
    made.kept = kept
    assert made.step(5_000) == 1.0
    return made


def test_half_is_left_after_a_half_life() -> None:
    one, two = forgetting(), forgetting()
    assert one.step(6_000) == pytest.approx(0.5)
    assert two.step(5_500) * two.step(6_000) == pytest.approx(0.5)
    assert one.decay == pytest.approx(0.5) == two.decay
    assert one.kept == pytest.approx(500.0)


def test_time_is_taken_in_steps() -> None:
    one = forgetting()
    assert all(one.step(5_000 + k) == 1.0 for k in range(14))
    assert one.step(5_020) == pytest.approx(0.5**0.02)


def test_a_few_pieces_of_evidence_are_kept_however_old_they_are() -> None:
    assert forgetting(kept=100.0).step(50_000) == 1.0
    one = forgetting(kept=150.0)
    assert one.step(500_000) == pytest.approx(100 / 150)
    assert one.kept == pytest.approx(100.0)


def test_a_clock_that_was_set_back_forgets_nothing() -> None:
    one = forgetting()
    assert one.step(1_000) == 1.0
    assert one.step(6_000) == pytest.approx(0.5)


def test_a_restored_one_goes_on_as_the_saved_one() -> None:
    one, two = forgetting(), Forgetting(1_000.0, 100.0)
    one.step(5_700)
    two.restore(one.state())
    assert two.step(9_000) == one.step(9_000)
    assert two.state() == one.state()
