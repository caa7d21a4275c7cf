from __future__ import annotations

import numpy as np
import pytest
from echolm.retrieval.diversity import MarginalRelevance
from hypothesis import given
from hypothesis import strategies as st

ONE_TOKEN = dict.fromkeys(range(9), 1).__getitem__


def test_without_overlap_the_best_are_taken() -> None:
    sets = MarginalRelevance({2: 0.9, 0: 0.8, 1: 0.1}, None, ONE_TOKEN, 2, 9)
    assert sets.completed() == ([2, 0], pytest.approx(1.7), 0.8)


def test_what_the_set_has_already_counts_less() -> None:
    overlap = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    sets = MarginalRelevance({0: 0.9, 1: 0.8, 2: 0.4}, overlap, ONE_TOKEN, 3, 9)
    assert sets.completed() == ([0, 2, 1], pytest.approx(1.6), pytest.approx(0.3))


def test_a_start_is_completed() -> None:
    overlap = np.array([[1.0, 0.5, 0.0], [0.5, 1.0, 0.6], [0.0, 0.6, 1.0]], np.float32)
    sets = MarginalRelevance({0: 0.9, 1: 0.8, 2: 0.4}, overlap, ONE_TOKEN, 2, 9)
    assert sets.completed([1]) == ([1, 0], pytest.approx(1.2), pytest.approx(0.4))
    assert sets.completed([2, 1]) == ([2, 1], pytest.approx(0.6), pytest.approx(0.2))


def test_what_exceeds_the_budget_is_skipped_in_the_start_as_well() -> None:
    sets = MarginalRelevance({0: 0.9, 1: 0.8, 2: 0.4}, None, [5, 1, 2].__getitem__, 3, 4)
    assert sets.completed().columns == [1, 2]
    assert sets.completed([0]).columns == [1, 2]
    assert sets.completed([2]).columns == [2, 1]


def test_nothing_to_choose_from() -> None:
    assert MarginalRelevance({}, None, ONE_TOKEN, 2, 9).completed() == ([], 0.0, 0.0)


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_each_next_one_adds_most_and_the_value_is_their_sum(n: int, most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    worth = rng.random(n).tolist()
    overlap = rng.random((n, n), dtype=np.float32)
    found = MarginalRelevance(dict(enumerate(worth)), overlap, ONE_TOKEN, most, 9).completed()
    assert len(found.columns) == min(n, most)

    def adds(column: int, before: list[int]) -> float:
        return float(worth[column] - max((overlap[k][column] for k in before), default=0.0))

    gains = []
    for place, column in enumerate(found.columns):
        before = found.columns[:place]
        gains.append(adds(column, before))
        others = set(range(n)) - set(found.columns[: place + 1])
        assert all(gains[-1] >= adds(k, before) for k in others)
    assert found.value == pytest.approx(sum(gains))
    assert found.least == min(gains)
