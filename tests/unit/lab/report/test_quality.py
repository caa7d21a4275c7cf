from __future__ import annotations

import pytest
from echolm_lab.experiments.load import Record, Run, scores
from echolm_lab.policies.base import Reply
from echolm_lab.policies.semantic_cache import sweep_cache
from echolm_lab.report.quality import win_rate
from echolm_lab.tasks import grade
from hypothesis import given
from hypothesis import strategies as st
from workload_items import items

score = st.sampled_from([0.0, 0.135, 0.5, 1.0])
similarity = st.sampled_from([-1.0, 0.5, 0.6, 0.75, 0.9, 1.0])
requests = st.lists(st.tuples(similarity, score, score), min_size=1, max_size=30)


def test_scores_are_grades_in_the_order_of_the_requests() -> None:
    asked = items(3)
    texts = (asked[0].answer, "nonsense", f"{asked[2].answer} and more")
    run = Run(
        tuple(
            Record(item, Reply(text, "small_llm"), "", 0.1)
            for item, text in zip(asked, texts, strict=True)
        ),
        1.0,
    )
    assert scores(run) == [grade(item, text) for item, text in zip(asked, texts, strict=True)]
    assert scores(run)[0] == 1.0
    assert 0 < scores(run)[2] < 1


def test_a_request_without_an_answer_scores_nothing() -> None:
    asked = items(2)
    right = Record(asked[0], Reply(asked[0].answer, "small_llm"), "", 0.1)
    assert scores(Run((right, Record(asked[1], None, "down", 0.1)), 1.0)) == [1.0, 0.0]


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
