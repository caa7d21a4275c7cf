from __future__ import annotations

from echolm.retrieval.prefix import WarmPrefixes
from hypothesis import given
from hypothesis import strategies as st


def test_without_a_past_the_order_is_by_id() -> None:
    assert WarmPrefixes().arrange([7, 3, 5]) == [3, 5, 7]


def test_an_order_that_was_used_stays() -> None:
    warm = WarmPrefixes()
    warm.use([7, 3])
    assert warm.arrange([3, 7]) == [7, 3]
    assert warm.arrange([1, 3, 7]) == [7, 3, 1]


def test_the_most_popular_come_first_where_no_order_is_warm() -> None:
    warm = WarmPrefixes()
    for _ in range(3):
        warm.use([1, 9])
    warm.use([2, 8])
    assert warm.arrange([5, 8, 9]) == [9, 8, 5]


def test_of_the_options_the_one_that_continues_a_prompt_is_warmest() -> None:
    warm = WarmPrefixes()
    warm.use([1, 2])
    for _ in range(5):
        warm.use([9, 3])
    assert warm.warmest([1], [3, 2]) == 1
    assert warm.warmest([2], [3, 1]) == 1  # 1 before 2 is warm as well
    assert warm.warmest([], [2, 1, 9]) == 2
    assert warm.warmest([], [6, 5, 4]) == 0


def test_what_was_not_used_for_long_is_cold() -> None:
    warm = WarmPrefixes(capacity=4)
    warm.use([2, 1])
    for i in range(10, 16):
        warm.use([i])
    assert warm.arrange([1, 2]) == [1, 2]


@given(st.lists(st.lists(st.integers(0, 9), unique=True, max_size=5), max_size=30))
def test_requests_with_the_same_examples_share_the_whole_prefix(sets: list[list[int]]) -> None:
    warm = WarmPrefixes()
    for ids in sets:
        order = warm.arrange(ids)
        assert sorted(order) == sorted(ids)
        warm.use(order)
        assert warm.arrange(list(reversed(ids))) == order
