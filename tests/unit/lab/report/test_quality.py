"""Win rates."""

from __future__ import annotations

import pytest
from echolm_lab.report.quality import win_rate
from hypothesis import given
from hypothesis import strategies as st

score = st.sampled_from([0.0, 0.135, 0.5, 1.0])


@pytest.mark.parametrize(
    ("own", "reference", "expected"),
    [
        ([1.0, 1.0], [0.0, 0.5], 1.0),
        ([0.0, 0.5], [1.0, 1.0], 0.0),
        ([0.3, 0.3], [0.3, 0.3], 0.5),
        ([1.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.5, 0.4], (2 + 0.5) / 4),
        # What floating point makes of equal scores is a tie.
        ([0.1 + 0.2], [0.3], 0.5),
    ],
)
def test_the_win_rate_counts_a_tie_as_half_a_win(
    own: list[float], reference: list[float], expected: float
) -> None:
    assert win_rate(own, reference) == pytest.approx(expected)


@given(st.lists(st.tuples(score, score), min_size=1))
def test_one_wins_what_the_other_loses(pairs: list[tuple[float, float]]) -> None:
    own, reference = zip(*pairs, strict=True)
    assert win_rate(own, reference) + win_rate(reference, own) == pytest.approx(1.0)
