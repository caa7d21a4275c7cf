from __future__ import annotations

import numpy as np
import pytest
from echolm.generation.prompt import EstimatedTokens
from echolm.retrieval.selection import ExampleSelector, Selected, SimilarityUtility
from echolm.retrieval.store import Candidate
from echolm.settings import RetrievalSettings
from hypothesis import given
from hypothesis import strategies as st


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


def select(candidates: list[Candidate], **settings: float) -> list[Selected]:
    loose = {"diversity": 0.0, "relative_similarity": 0.0, "min_similarity": 0.5}
    chosen = loose | {"max_examples": 4} | settings
    selector = ExampleSelector(RetrievalSettings(**chosen), SimilarityUtility(), Words())  # type: ignore[arg-type]
    return selector.select(["q"], [candidates])[0]


def ids(selected: list[Selected]) -> list[int]:
    return [s.id for s in selected]


def test_nothing_found_nothing_chosen() -> None:
    selector = ExampleSelector(RetrievalSettings(), SimilarityUtility(), EstimatedTokens())
    assert selector.select([], []) == []
    assert selector.select(["a", "b"], [[], []]) == [[], []]


def test_candidates_under_the_threshold_are_dropped() -> None:
    found = [candidate(1, 0.7), candidate(2, 0.5), candidate(3, 0.499)]
    assert ids(select(found, min_similarity=0.5)) == [1, 2]


def test_a_similarity_that_is_not_a_number_is_dropped() -> None:
    assert ids(select([candidate(1, float("nan")), candidate(2, 0.9)])) == [2]


def test_candidates_far_under_the_best_are_dropped() -> None:
    found = [candidate(1, 1.0), candidate(2, 0.86), candidate(3, 0.84)]
    assert ids(select(found, relative_similarity=0.85)) == [1, 2]


def test_utility_is_similarity_times_quality() -> None:
    found = [candidate(1, 0.9, quality=0.5), candidate(2, 0.8, quality=1.0)]
    chosen = select(found, max_examples=1)
    assert ids(chosen) == [2]
    assert chosen[0].utility == pytest.approx(0.8)
    assert chosen[0].similarity == pytest.approx(0.8)


def test_utilities_of_a_batch_keep_their_rows() -> None:
    rows = [[candidate(1, 0.9)], [], [candidate(2, -0.2), candidate(3, 0.5, quality=0.5)]]
    scores = SimilarityUtility().score(["a", "b", "c"], rows)
    assert [s.tolist() for s in scores] == [pytest.approx([0.9]), [], pytest.approx([0.0, 0.25])]
    assert all(s.dtype == np.float32 for s in scores)


def test_no_more_than_max_examples() -> None:
    found = [candidate(i, 0.9 - i / 100) for i in range(8)]
    assert ids(select(found, max_examples=3)) == [0, 1, 2]
    assert select(found, max_examples=0) == []


def test_a_redundant_example_gives_way_to_another_story() -> None:
    same = {"request": "list all hidden files", "response": "ls -a here"}
    found = [
        candidate(1, 0.95, **same),
        candidate(2, 0.94, **same),
        candidate(3, 0.90, request="show dotted entries", response="find . -name x"),
    ]
    assert ids(select(found, max_examples=2, diversity=0.0)) == [1, 2]
    assert ids(select(found, max_examples=2, diversity=0.3)) == [1, 3]


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


def test_the_order_is_canonical_whatever_the_ranking() -> None:
    one = select([candidate(5, 0.9), candidate(2, 0.8), candidate(9, 0.7)])
    two = select([candidate(9, 0.9), candidate(5, 0.8), candidate(2, 0.7)])
    assert ids(one) == ids(two) == [2, 5, 9]


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.integers(1, 12)), max_size=12),
    st.integers(0, 40),
    st.floats(0, 1),
)
def test_limits_hold_for_any_candidates(
    values: list[tuple[float, float, int]], budget: int, diversity: float
) -> None:
    found = [
        candidate(i, similarity, quality, request="w " * words)
        for i, (similarity, quality, words) in enumerate(values)
    ]
    settings = RetrievalSettings(max_example_tokens=budget, diversity=diversity, max_examples=3)
    [chosen] = ExampleSelector(settings, SimilarityUtility(), Words()).select(["q"], [found])
    assert len(chosen) <= 3
    assert ids(chosen) == sorted(set(ids(chosen)))
    assert sum(len(s.request.split()) + len(s.response.split()) for s in chosen) <= budget
    assert all(s.similarity >= settings.min_similarity for s in chosen)
    best = max((c.similarity * c.quality for c in found if c.similarity >= 0.6), default=0.0)
    assert all(s.utility >= best * settings.relative_similarity - 1e-6 for s in chosen)
