from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from echolm.learning.request_statistics import Quantiles, RequestStatistics, fit
from echolm.retrieval.relevance import SimilarityScale, relevance
from hypothesis import given
from hypothesis import strategies as st

EMPTY = RequestStatistics.none()


def scale(unrelated: Quantiles, nearest: Quantiles) -> SimilarityScale:
    return SimilarityScale.of(replace(EMPTY, unrelated=unrelated, nearest=nearest))


def at(of: SimilarityScale, *cosines: float) -> list[float]:
    return [float(p) for p in relevance(of.position(np.array(cosines, np.float32)))]


MEASURED = {
    # Quantiles of real requests with a small sentence embedder; the first is a generated workload
    # of popular intents, whose random pairs are often related.
    "commands": ((0.19, 0.38, 0.71), (0.64, 0.83, 0.96)),
    "banking": ((0.19, 0.49, 0.63), (0.69, 0.86, 0.95)),
    "shell": ((0.21, 0.50, 0.64), (0.54, 0.74, 0.93)),
    "tight": ((0.80, 0.86, 0.90), (0.91, 0.94, 0.98)),
    "low": ((0.15, 0.35, 0.45), (0.59, 0.69, 0.76)),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_typical_nearest_example_is_relevant_for_any_service(name: str) -> None:
    unrelated, nearest = MEASURED[name]
    low, middle, high = at(scale(unrelated, nearest), *nearest)
    assert 0.3 < low < middle < high
    assert 0.75 < middle < 0.92
    assert high > 0.85
    assert max(at(scale(unrelated, nearest), *unrelated[:2])) < 0.25


def test_where_the_nearest_are_like_unrelated_requests_none_is_relevant() -> None:
    """Another service's store: what is stored has nothing to do with the requests."""
    nothing = scale((0.21, 0.50, 0.64), (0.14, 0.19, 0.29))
    assert max(at(nothing, 0.14, 0.19, 0.29)) < 0.1
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1_500, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = (vectors[1_000:] @ vectors[:1_000].T).max(axis=1)
    random = SimilarityScale.of(fit(vectors[1_000:], nearest, 1))
    assert max(at(random, *map(float, nearest))) < 0.5


def test_the_same_request_again_is_relevant_for_any_service() -> None:
    for unrelated, nearest in (*MEASURED.values(), ((0.0, 0.1, 0.2), (0.1, 0.15, 0.2))):
        assert at(scale(unrelated, nearest), 1.0)[0] > 0.85


def test_before_anything_is_measured_it_is_of_use_for_most() -> None:
    generic = SimilarityScale.of(EMPTY)
    assert all(p > 0.7 for p in at(generic, 0.69, 0.73, 0.84, 0.98))
    assert all(p < 0.2 for p in at(generic, 0.0, 0.25, 0.4))
    assert 0.6 < generic.same < 0.75


def test_popular_requests_do_not_make_related_ones_irrelevant() -> None:
    """With ten intents a tenth of random pairs has the same one."""
    few = scale((0.2, 0.8, 0.9), (0.75, 0.85, 0.95))
    assert min(at(few, 0.75, 0.85)) > 0.6


QUANTILES = st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)).map(
    lambda q: tuple(sorted(q))
)


@given(QUANTILES, QUANTILES)
def test_any_statistics_give_a_scale(unrelated: Quantiles, nearest: Quantiles) -> None:
    of = scale(unrelated, nearest)
    assert of.floor < of.same < of.typical
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = at(of, -1.0, *unrelated, *nearest, 1.0)
    assert all(0.0 <= value <= 1.0 for value in values)
