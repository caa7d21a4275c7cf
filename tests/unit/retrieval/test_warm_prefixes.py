from __future__ import annotations

from echolm.retrieval.prefix import Prefix, WarmPrefixes
from hypothesis import given
from hypothesis import strategies as st


def any_start(_: Prefix) -> bool:
    return True


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


def test_the_longest_start_of_an_earlier_prompt_is_found_among_more_ids_than_it_needs() -> None:
    warm = WarmPrefixes()
    warm.use([1, 2, 3])
    for _ in range(5):
        warm.use([9, 3])
    assert warm.longest([3, 2, 1, 9], any_start) == (1, 2, 3)
    assert warm.longest([3, 2, 9], any_start) == (9, 3)
    assert warm.longest([2, 3], any_start) == ()


def test_of_equally_long_starts_the_one_used_most_is_taken() -> None:
    warm = WarmPrefixes()
    for order in ([1, 2], [8, 7], [1, 2], [8, 6]):
        warm.use(order)
    assert warm.longest([8, 7, 6, 2, 1], any_start) == (1, 2)


def test_a_start_that_is_not_allowed_is_not_continued() -> None:
    warm = WarmPrefixes()
    warm.use([1, 2, 3])
    warm.use([4, 5])
    assert warm.longest([1, 2, 3, 4, 5], lambda start: 2 not in start) == (4, 5)
    assert warm.longest([1, 2, 3], lambda start: 2 not in start) == (1,)
    assert warm.longest([1, 2, 3], lambda start: False) == ()


def test_a_search_looks_at_few_starts_and_at_the_most_used_ones_first() -> None:
    warm = WarmPrefixes()
    for one in range(40):
        for other in range(40):
            if one != other:
                warm.use([one, other])
    for _ in range(50):
        warm.use([7, 31, 5])
    asked: list[Prefix] = []

    def allowed(start: Prefix) -> bool:
        asked.append(start)
        return True

    assert warm.longest(range(40), allowed) == (7, 31, 5)
    assert len(asked) <= 24


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
