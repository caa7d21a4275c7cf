from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, takewhile
from operator import eq, itemgetter
from typing import Any

import numpy as np
import pytest
from echolm.learning.event_log import Event
from echolm.learning.request_statistics import REQUEST_STATISTICS, RequestStatistics, fit
from echolm.primitives import Candidate, Selected
from echolm.retrieval.features import FeatureBatch
from echolm.retrieval.record import NONE
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.selector import ExampleSelector, Selection
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility, UtilityModel
from echolm.settings import RetrievalSettings, Settings
from echolm.wiring.retrieval import build_selector
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


class Words:
    """A word is a token."""

    def count(self, text: str) -> int:
        return len(text.split())


def candidate(
    id: int, similarity: float, quality: float = 1.0, request: str = "", response: str = ""
) -> Candidate:
    return Candidate(
        id, request or f"request{id}", response or f"response{id}", "public", quality, similarity
    )


class Cosine:
    """Utility is the cosine times the response's quality."""

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        return np.asarray(np.maximum(batch.similarity, 0.0) * batch.quality)

    surely = score


def selector_of(model: UtilityModel | None = None, **settings: Any) -> ExampleSelector:
    """A selector that neither explores nor prefers warm examples, unless told to.

    It scores by cosine, unless a model or the kind of one is given.
    """
    plain = {
        "min_similarity": 0.5,
        "num_examples": 4,
        "max_examples": 4,
        "adaptive_num_examples": False,
        "leave_one_out": 0.0,
        "warm_tolerance": 0.0,
    }
    chosen = Settings(retrieval=RetrievalSettings(**plain | settings))  # type: ignore[arg-type]
    made = build_selector(chosen, Words(), np.random.default_rng(0), dimension=2)
    if model is not None or "utility" not in settings:
        made.utility = model or Cosine()
    return made


def select(candidates: list[Candidate], **settings: Any) -> list[Selected]:
    [selection] = selector_of(**settings).select(["q"], [candidates])
    return list(selection.examples)


def ids(selected: Sequence[Selected]) -> list[int]:
    return [s.id for s in selected]


def test_nothing_found_nothing_chosen() -> None:
    selector = selector_of()
    assert selector.select([], []) == []
    assert selector.select(["a", "b"], [[], []]) == [Selection(), Selection()]
    assert selector.select(["a"], [[candidate(1, 0.2)]]) == [Selection()]


def test_candidates_under_the_threshold_are_dropped() -> None:
    found = [candidate(1, 0.7), candidate(2, 0.5), candidate(3, 0.499)]
    assert ids(select(found, min_similarity=0.5)) == [1, 2]


def test_a_similarity_that_is_not_a_number_is_dropped() -> None:
    assert ids(select([candidate(1, float("nan")), candidate(2, 0.9)])) == [2]


def test_utility_is_similarity_times_quality() -> None:
    found = [candidate(1, 0.9, quality=0.5), candidate(2, 0.8, quality=1.0)]
    chosen = select(found, max_examples=1)
    assert ids(chosen) == [2]
    assert chosen[0].utility == pytest.approx(0.8)
    assert chosen[0].similarity == pytest.approx(0.8)


def test_the_rows_of_a_batch_do_not_mix() -> None:
    rows = [[candidate(1, 0.9)], [], [candidate(2, 0.2), candidate(3, 0.6, quality=0.5)]]
    chosen = selector_of().select(["a", "b", "c"], rows)
    assert [ids(s.examples) for s in chosen] == [[1], [], [3]]
    assert [e.utility for s in chosen for e in s.examples] == pytest.approx([0.9, 0.3])
    assert [s.record.ids if s.record else None for s in chosen] == [(1,), None, (3,)]


def test_no_more_than_max_examples() -> None:
    found = [candidate(i, 0.9 - i / 100) for i in range(8)]
    assert ids(select(found, max_examples=3)) == [0, 1, 2]
    assert select(found, max_examples=0) == []


def test_examples_that_agree_are_evidence_and_one_that_they_contradict_gives_way() -> None:
    found = [
        candidate(1, 0.80, request="card gone", response="lost_or_stolen_card"),
        candidate(2, 0.79, request="card not here", response="card_arrival"),
        candidate(3, 0.78, request="where is it", response="card_arrival"),
        candidate(4, 0.77, request="still no card", response="card_arrival"),
    ]
    for utility in ("learned", "similarity"):
        assert ids(select(found, num_examples=3, utility=utility)) == [2, 3, 4]


def test_the_token_budget_holds_and_a_shorter_example_may_still_fit() -> None:
    found = [
        candidate(1, 0.95, request="a b", response="c"),
        candidate(2, 0.90, request="w " * 10, response="long"),
        candidate(3, 0.85, request="d", response="e"),
    ]
    assert ids(select(found, max_example_tokens=5)) == [1, 3]
    assert ids(select(found, max_example_tokens=4)) == [1]
    assert ids(select(found, max_example_tokens=2)) == [3]
    assert select(found, max_example_tokens=0) == []


@pytest.mark.parametrize("utility", ["learned", "similarity"])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_before_any_rating_the_nearest_ones_are_chosen(utility: str, count: int) -> None:
    found = [candidate(i, 0.95 - i / 30) for i in range(9)]
    limits = {"num_examples": count, "max_examples": 5, "adaptive_num_examples": True}
    for _ in range(20):
        chosen = select(found, utility=utility, order="similarity", **limits)
        assert ids(chosen) == list(reversed(range(count)))


def test_by_default_what_unrelated_requests_reach_is_no_candidate() -> None:
    selector = selector_of(min_similarity=None)
    floor = SimilarityScale.of(RequestStatistics.none()).floor
    found = [candidate(1, floor + 0.01), candidate(2, floor - 0.01)]
    assert ids(selector.select(["q"], [found])[0].examples) == [1]
    rng = np.random.default_rng(0)
    measured = fit(rng.random((64, 2)).astype(np.float32), np.zeros(0, np.float32), 1)
    far = replace(measured, unrelated=(0.8, 0.9, 0.93), nearest=(0.94, 0.96, 0.99))
    selector.newest_statistics.apply(Event("1", REQUEST_STATISTICS, far.body(), 0))
    assert not selector.select(["q"], [found])[0].examples
    found = [candidate(1, 0.95), candidate(2, 0.85)]
    assert ids(selector.select(["q"], [found])[0].examples) == [1]


def test_many_weak_examples_do_not_make_help_probable() -> None:
    found = [candidate(k, 0.9) for k in range(16)]
    for utility, least, most in ((0.2, 0.2, 0.2), (0.6, 0.99, 1.0)):
        selector = selector_of(Given(dict.fromkeys(range(16), utility)))
        [selection] = selector.select(["q"], [found])
        assert least - 1e-6 <= selection.help_probability <= most + 1e-6


def test_by_similarity_the_most_similar_stands_next_to_the_request() -> None:
    found = [candidate(1, 0.9), candidate(2, 0.7), candidate(3, 0.8)]
    assert ids(select(found, order="similarity")) == [2, 3, 1]


def test_of_nearly_equal_examples_the_warm_ones_are_taken_in_their_order() -> None:
    selector = selector_of(warm_tolerance=0.03, max_examples=2)
    one = [candidate(5, 0.90), candidate(8, 0.89)]
    assert ids(selector.select(["a"], [one])[0].examples) == [5, 8]
    two = [candidate(1, 0.91), candidate(2, 0.90), candidate(8, 0.89), candidate(5, 0.885)]
    assert ids(selector.select(["b"], [two])[0].examples) == [5, 8]
    better = [candidate(1, 0.99), candidate(2, 0.95), candidate(8, 0.89), candidate(5, 0.885)]
    assert ids(selector.select(["c"], [better])[0].examples) == [1, 2]


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 9), st.floats(0.5, 1)), max_size=8, unique_by=itemgetter(0)
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([0.0, 0.01, 0.1]),
)
def test_a_warm_set_is_as_large_as_the_best_one_and_nearly_as_good(
    requests: list[list[tuple[int, float]]], tolerance: float
) -> None:
    """And it never shares less of earlier prompts than the best set in its best order."""
    limits = {"max_examples": 3}
    warm = selector_of(warm_tolerance=tolerance, **limits)
    earlier: list[list[int]] = []
    for found in requests:
        row = [candidate(i, similarity, request=f"about {i % 3}") for i, similarity in found]
        [chosen] = warm.select(["q"], [row])
        [best] = selector_of(order="similarity", **limits).select(["q"], [row])
        assert len(chosen.examples) == len(best.examples)
        given_up = sum(e.utility for e in best.examples) - sum(e.utility for e in chosen.examples)
        assert given_up <= tolerance * len(best.examples) + 1e-5
        longest = max(shared(list(o), earlier) for o in permutations(ids(best.examples)))
        assert shared(ids(chosen.examples), earlier) >= longest
        earlier.append(ids(chosen.examples))


def shared(order: list[int], earlier: list[list[int]]) -> int:
    """Examples at the start of a prompt with which an earlier one began as well."""
    return max((sum(takewhile(bool, map(eq, order, one))) for one in earlier), default=0)


def test_now_and_then_one_example_is_dropped_and_the_record_says_which() -> None:
    selector = selector_of(leave_one_out=0.3, adaptive_num_examples=True)
    found = [candidate(1, 0.9), candidate(2, 0.8), candidate(3, 0.7)]
    dropped = []
    for _ in range(400):
        [selection] = selector.select(["q"], [found])
        assert selection.record is not None
        if selection.record.dropped != NONE:
            dropped.append(selection.record.dropped)
            assert selection.record.dropped not in ids(selection.examples)
            assert selection.record.count is None
        else:
            assert selection.record.count == 3
    assert len(dropped) == pytest.approx(400 * 0.3, abs=40)
    assert all(dropped.count(i) > 15 for i in (1, 2, 3))


def test_a_single_example_is_never_dropped() -> None:
    chosen = selector_of(leave_one_out=1.0).select(["q"] * 9, [[candidate(1, 0.9)]] * 9)
    assert [ids(s.examples) for s in chosen] == [[1]] * 9


class Given:
    """Utilities as they are given, by id."""

    def __init__(self, utilities: dict[int, float]) -> None:
        self.utilities = utilities

    def score(self, batch: FeatureBatch) -> NDArray[np.float32]:
        rows = [[self.utilities.get(i, 0.0) for i in row] for row in batch.ids.tolist()]
        return np.array(rows, dtype=np.float32)

    surely = score


def test_the_record_says_how_many_there_were_to_be_and_of_which_there_was_a_choice() -> None:
    settings = {"adaptive_num_examples": True, "num_examples": 2, "max_examples": 4}
    found = [candidate(i, 0.9 - i / 20, response=f"text{i % 2}") for i in range(6)]
    [selection] = selector_of(**settings).select(["q"], [found])
    record = selection.record
    assert record is not None
    assert (record.count, record.ids, record.ranked.shape) == (2, (0, 1), (4, 2))
    assert np.all(np.diff(record.ranked[:, 0]) < 0)
    [few] = selector_of(**settings).select(["q"], [found[:1]])
    assert few.record is not None
    assert (few.record.count, len(few.record.ranked)) == (1, 1)
    [fixed] = selector_of(adaptive_num_examples=False).select(["q"], [found])
    assert fixed.record is not None
    assert fixed.record.count is None


def test_only_what_is_configured_to_learn_learns() -> None:
    def learning(**settings: Any) -> set[str]:
        learnables = selector_of(**settings).learnables
        return {one.name for one in learnables} - {"request_statistics"}

    assert learning(utility="learned", adaptive_num_examples=True) == {"utility", "example_count"}
    assert learning(utility="learned") == {"utility"}
    assert learning(utility="similarity", adaptive_num_examples=True) == {"example_count"}
    assert learning(utility="similarity") == set()
    assert selector_of().learnables[0].name == "request_statistics"
    assert isinstance(selector_of(utility="learned").utility, LearnedUtility)
    assert isinstance(selector_of(utility="similarity").utility, SimilarityUtility)


def test_the_order_is_canonical_whatever_the_ranking() -> None:
    one = select([candidate(5, 0.9), candidate(2, 0.8), candidate(9, 0.7)])
    two = select([candidate(9, 0.9), candidate(5, 0.8), candidate(2, 0.7)])
    assert ids(one) == ids(two) == [2, 5, 9]


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.integers(1, 12)), max_size=12),
    st.integers(0, 40),
)
def test_limits_hold_for_any_candidates(
    values: list[tuple[float, float, int]], budget: int
) -> None:
    found = [
        candidate(i, similarity, quality, request="w " * words)
        for i, (similarity, quality, words) in enumerate(values)
    ]
    settings = RetrievalSettings()
    chosen = select(
        found,
        max_example_tokens=budget,
        max_examples=3,
        min_similarity=0.6,
        warm_tolerance=settings.warm_tolerance,
    )
    assert len(chosen) <= 3
    assert ids(chosen) == sorted(set(ids(chosen)))
    assert sum(len(s.request.split()) + len(s.response.split()) for s in chosen) <= budget
    assert all(s.similarity >= 0.6 for s in chosen)
