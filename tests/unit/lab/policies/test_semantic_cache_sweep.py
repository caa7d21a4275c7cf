"""A semantic cache at every threshold, from what is nearest to each request."""

from __future__ import annotations

import pytest
from echolm_lab.policies.semantic_cache import sweep_cache
from hypothesis import given
from hypothesis import strategies as st

score = st.sampled_from([0.0, 0.135, 0.5, 1.0])
similarity = st.sampled_from([-1.0, 0.5, 0.6, 0.75, 0.9, 1.0])
requests = st.lists(st.tuples(similarity, score, score), min_size=1, max_size=30)


@given(requests, st.lists(similarity, max_size=6))
def test_a_sweep_is_what_each_cache_would_have_answered(
    asked: list[tuple[float, float, float]], thresholds: list[float]
) -> None:
    similarities, cached, large = zip(*asked, strict=True)
    points = sweep_cache(similarities, cached, large, thresholds)
    assert [point.threshold for point in points] == thresholds
    for point in points:
        hits = total = won = 0.0
        for near, from_store, generated in asked:
            own = generated
            if near >= point.threshold:
                hits += 1
                own = from_store
            total += own
            won += 1.0 if own > generated else 0.5 if own == generated else 0.0
        assert point.hit_rate == pytest.approx(hits / len(asked))
        assert point.mean_score == pytest.approx(total / len(asked))
        assert point.win_rate == pytest.approx(won / len(asked))


def test_a_cache_that_never_hits_is_the_large_llm_and_one_that_always_hits_the_store() -> None:
    never, always = sweep_cache([0.5, 0.9], [0.0, 0.2], [1.0, 0.9], [1.1, -1.0])
    assert (never.hit_rate, never.mean_score, never.win_rate) == (0.0, 0.95, 0.5)
    assert (always.hit_rate, always.mean_score, always.win_rate) == (1.0, 0.1, 0.0)
