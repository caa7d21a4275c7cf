from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from echolm.learning.tokens import FeedbackTokens
from echolm.primitives import Decision
from echolm.retrieval.features import EXAMPLE_FEATURES, REQUEST_FEATURES
from echolm.retrieval.record import NONE, RANK_FEATURES, SelectionRecord, used_selection
from hypothesis import given
from hypothesis import strategies as st


def record(n: int, dropped: int = NONE, count: int | None = None) -> SelectionRecord:
    rng = np.random.default_rng(n)
    return SelectionRecord(
        rng.random(len(REQUEST_FEATURES)).astype(np.float32),
        tuple(2**60 + i for i in range(n)),
        rng.normal(0, 2, (n, len(EXAMPLE_FEATURES))).astype(np.float32),
        tuple(100 + i for i in range(n)),
        dropped,
        count,
        rng.random((n + 1, RANK_FEATURES)).astype(np.float32),
    )


@given(
    st.integers(0, 32),
    st.integers(-1, 2**62),
    st.none() | st.integers(0, 33),
)
def test_a_record_survives_the_round_trip(n: int, dropped: int, count: int | None) -> None:
    one = record(n, dropped, None if count is None else min(count, n + 1))
    two = SelectionRecord.load(one.dump())
    assert (two.ids, two.tokens, two.dropped, two.count) == (
        one.ids,
        one.tokens,
        one.dropped,
        one.count,
    )
    assert np.allclose(two.request, one.request, atol=1e-3)
    assert np.allclose(two.features, one.features, rtol=1e-3, atol=1e-3)
    assert np.allclose(two.ranked, one.ranked, atol=1e-3)
    assert two.dump() == one.dump()


def test_of_the_examples_only_the_used_ones_remain() -> None:
    one = record(3)
    used = one.of_used({one.ids[2], one.ids[0], 5})
    assert used.ids == (one.ids[0], one.ids[2])
    assert np.array_equal(used.features, one.features[[0, 2]])
    assert used.tokens == (100, 102)
    assert one.of_used(()).features.shape == (0, len(EXAMPLE_FEATURES))


@pytest.mark.parametrize("by_router", [True, False])
@pytest.mark.parametrize("used", [(0, 1, 2), (2, 0), ()])
def test_the_text_of_a_used_selection_is_that_of_its_opened_record(
    used: tuple[int, ...], by_router: bool
) -> None:
    one = record(3, count=2)
    ids = [one.ids[k] for k in used]
    expected = SelectionRecord.load(one.dump()).of_used(ids)
    if not by_router:
        expected = replace(expected, count=None)
    assert used_selection(one.dump(), one.ids, ids, by_router) == expected.dump()


def test_a_selection_is_opened_only_if_something_in_it_changes() -> None:
    assert used_selection("unread", [1, 2], [1, 2], by_router=True) == "unread"
    assert used_selection("", [], [], by_router=False) == ""
    for used, by_router in (([1], True), ([1, 2], False)):
        with pytest.raises(ValueError, match="selection"):
            used_selection("unread", [1, 2], used, by_router)


@pytest.mark.parametrize(
    "text", ["", "AAAA", "€", record(2).dump()[:-8], record(2).dump() + "AAAA"]
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="selection"):
        SelectionRecord.load(text)


def test_features_that_are_no_numbers_are_refused() -> None:
    one = record(1)
    one.features[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        SelectionRecord.load(one.dump())


@pytest.mark.parametrize("count", [-2, 3])
def test_a_number_of_examples_that_there_were_not_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="at most 2 examples"):
        SelectionRecord.load(record(1, count=count).dump())


def test_a_token_with_four_examples_is_short_enough_to_pass_around() -> None:
    context = np.random.default_rng(0).random(27).astype(np.float32)
    text = record(4, count=4).dump()
    decision = Decision("f" * 32, "public", "small_llm", context, 0.5, 0.5, (2**60,) * 4)
    with_record = Decision(**{**vars(decision), "selection": text})
    token = FeedbackTokens("key", 60).dump(with_record)
    assert len(token) < 1_000
    assert FeedbackTokens("key", 60).load(token).selection == text
