from __future__ import annotations

import math

import numpy as np
import pytest
from echolm.bandit.features import DIMENSION, SCALARS, Featurizer
from echolm.learning.logistic import logit, rating_site, sigmoid
from echolm.learning.request_statistics import NUM_COMPONENTS, RequestStatistics, fit
from echolm.primitives import Selected
from echolm.settings import LLMSettings
from hypothesis import given
from hypothesis import strategies as st

FIRST = len(SCALARS)
E = np.linspace(-1, 1, 32, dtype=np.float32)
texts = st.text("ab c", max_size=8)
examples = st.lists(
    st.tuples(texts, texts, st.sampled_from([0.2, 0.7, 0.9]), st.floats(0, 1)), max_size=5
).map(lambda rows: [Selected(i, *row) for i, row in enumerate(rows)])


def requests(n: int, seed: int, dimension: int = 32, rank: int = 3) -> np.ndarray:  # type: ignore[type-arg]
    """Unit vectors that differ along few directions."""
    rng = np.random.default_rng(seed)
    basis = np.random.default_rng(7).normal(size=(rank, dimension)) * np.array([[3], [2], [1]])
    vectors = 100.0 + rng.normal(size=(n, rank)) @ basis + 0.01 * rng.normal(size=(n, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def statistics(version: int, n: int = 200, nearest: float = 0.6) -> RequestStatistics:
    near = np.linspace(nearest - 0.1, nearest + 0.1, 50, dtype=np.float32)
    return fit(requests(n, version), near, version)


def value(x: np.ndarray, name: str) -> float:  # type: ignore[type-arg]
    return float(x[SCALARS.index(name)])


@given(examples, st.integers(0, 2), texts)
def test_the_context_has_its_dimension_and_finite_numbers(
    chosen: list[Selected], version: int, text: str
) -> None:
    featurizer = Featurizer()
    if version:
        featurizer.adopt(statistics(version))
    x = featurizer(text, E, chosen)
    assert x.shape == (DIMENSION,) == (FIRST + NUM_COMPONENTS,)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.abs(x.astype(np.float16)).max() < 1_000  # it travels as FP16


@given(examples, st.randoms())
def test_the_context_does_not_depend_on_the_order_of_examples(
    chosen: list[Selected], random: object
) -> None:
    shuffled = list(chosen)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    featurizer = Featurizer()
    assert featurizer("a b", E, chosen) == pytest.approx(featurizer("a b", E, shuffled), abs=1e-6)


def test_without_examples_only_the_request_speaks() -> None:
    featurizer = Featurizer()
    featurizer.adopt(statistics(1))
    x = featurizer("hello", E, [])
    assert value(x, "without_examples") == 1
    assert value(x, "log_length") == pytest.approx((math.log1p(5) - 5) / (5 / 2.56))
    others = set(SCALARS) - {"without_examples", "log_length"}
    assert all(value(x, name) == 0 for name in others)
    assert np.abs(x[FIRST:]).max() > 0


def test_without_an_embedding_or_statistics_the_components_are_zero() -> None:
    featurizer = Featurizer()
    assert not featurizer("hello", E, [])[FIRST:].any()
    featurizer.adopt(statistics(1))
    assert not featurizer("hello", None, [])[FIRST:].any()


def test_components_tell_the_services_own_requests_apart() -> None:
    featurizer = Featurizer()
    featurizer.adopt(statistics(1))
    embeddings = requests(100, seed=5)
    X = featurizer.many(["q"] * 100, list(embeddings), [()] * 100)[:, FIRST:]
    assert X[:, 0].std() == pytest.approx(1.0, abs=0.2)
    assert X[:, 0].std() > X[:, 1].std() > X[:, 2].std() > 3 * X[:, 3].std()


def test_similarities_are_relative_to_what_is_typical() -> None:
    """The same place among this service's requests gives the same features."""
    found = []
    for typical in (0.6, 0.8):
        featurizer = Featurizer()
        featurizer.adopt(statistics(1, nearest=typical))
        chosen = [Selected(1, "q", "a", typical + 0.04, 0.8), Selected(2, "q", "a", typical, 0.8)]
        found.append(featurizer("q", None, chosen)[:FIRST])
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert value(found[0], "best_similarity") == pytest.approx(0.25, abs=0.01)
    assert value(found[0], "mean_similarity") == pytest.approx(0.125, abs=0.01)
    assert value(found[0], "similarity_margin") == pytest.approx(0.25, abs=0.01)


def test_lengths_are_relative_to_what_is_typical() -> None:
    lengths = np.exp(np.linspace(3.0, 4.0, 200)).astype(np.float32)
    featurizer = Featurizer()
    featurizer.adopt(fit(requests(200, 1), np.zeros(0, np.float32), 1, lengths=lengths))
    found = [value(featurizer("q" * n, None, []), "log_length") for n in (21, 33, 52, 5_000)]
    assert found == pytest.approx([-1.4, 0.0, 1.4, 2.0], abs=0.15)
    former = featurizer.statistics
    x = featurizer("q" * 40, None, [])
    featurizer.adopt(fit(requests(200, 2), np.zeros(0, np.float32), 2, lengths=2 * lengths))
    assert featurizer.convert(x, former.version)[:FIRST] == pytest.approx(
        featurizer("q" * 40, None, [])[:FIRST], abs=1e-4
    )


def test_another_embedding_models_statistics_are_not_used() -> None:
    featurizer = Featurizer()
    featurizer.adopt(statistics(1))
    x = featurizer("q", requests(1, 3)[0], [])
    assert x[FIRST:].any()
    featurizer.adopt(fit(requests(200, 2, dimension=16), np.zeros(0, np.float32), 2))
    assert not featurizer("q", requests(1, 3)[0], [])[FIRST:].any()
    assert not featurizer.convert(x, 1)[FIRST:].any()


def test_the_scalars_of_examples_are_centred_and_cut() -> None:
    chosen = [
        Selected(1, "list files", "ls a", 0.9, 0.7, 1.0),
        Selected(2, "x", "ls b", 0.6, 0.6, -0.4),
        Selected(3, "y", "ls a", 0.75, 0.5, 0.9),
    ]
    x = Featurizer()("list all files" + " " * 46, None, chosen)
    expected = {
        "without_examples": 0.0,
        "with_examples": 1.0,
        "log_length": 0.0,
        "best_similarity": (0.9 - 0.75) / 0.3,
        "mean_similarity": 0.0,
        "similarity_margin": 0.15 / 0.3,
        "best_utility": (logit(0.7) - 1.4) / 2,
        "num_examples": 3 / 2 - 1,
        "request_overlap": 2 / 3 - 0.5,
        "response_agreement": 0.5,
    }
    assert set(expected) == set(SCALARS)
    for name, number in expected.items():
        assert value(x, name) == pytest.approx(number, abs=1e-6), name
    odd = Featurizer()("q", None, [Selected(1, "q", "a", -1.0, 1.0)])
    assert value(odd, "best_similarity") == -2.0


def test_a_context_of_earlier_statistics_is_converted() -> None:
    featurizer = Featurizer()
    former, newer = statistics(1), statistics(2, n=400, nearest=0.7)
    embedding = requests(1, seed=9)[0]
    chosen = [Selected(1, "q a", "a", 0.65, 0.8), Selected(2, "q", "a", 0.6, 0.8)]
    featurizer.adopt(former)
    x = featurizer("q a", embedding, chosen)
    featurizer.adopt(newer)
    again = featurizer("q a", embedding, chosen)
    assert np.abs(again - x).max() > 0.1
    # The requests differ along three directions, which both samples have found.
    assert featurizer.convert(x, 1)[:FIRST] == pytest.approx(again[:FIRST], abs=1e-4)
    assert featurizer.convert(x, 1)[FIRST : FIRST + 3] == pytest.approx(
        again[FIRST : FIRST + 3], abs=0.15
    )
    assert featurizer.convert(again, 2) == pytest.approx(again)
    assert not featurizer.convert(x, 77)[FIRST:].any()  # of statistics that nobody knows


def test_new_statistics_change_no_prediction_of_what_was_learnt() -> None:
    featurizer = Featurizer()
    llm = LLMSettings(name="s", cost=1, takes_examples=True)
    prior = featurizer.prior(llm, 0.7, 3.0)
    featurizer.adopt(statistics(1))
    weights = prior
    rng = np.random.default_rng(0)
    weights = type(prior)(prior.mean + rng.normal(size=DIMENSION) * 0.3, 0.1 * prior.covariance)
    embeddings = list(requests(50, seed=4))
    chosen = [[Selected(1, "q", "a", 0.55 + 0.002 * k, 0.8)] for k in range(50)]
    before = featurizer.many(["q"] * 50, embeddings, chosen).astype(np.float64)
    moved = weights.transformed(prior, featurizer.adopt(statistics(2, n=400, nearest=0.65)))
    after = featurizer.many(["q"] * 50, embeddings, chosen).astype(np.float64)
    assert after @ moved.mean == pytest.approx(before @ weights.mean, abs=0.2)
    assert np.corrcoef(after @ moved.mean, before @ weights.mean)[0, 1] > 0.95
    for x, y in zip(before, after, strict=True):
        # Directions that the first sample did not have are as unknown as at first.
        assert 0.9 * weights.at(x)[1] < moved.at(y)[1] < prior.at(y)[1]


def test_the_first_statistics_leave_topics_as_unknown_as_they_were() -> None:
    featurizer = Featurizer()
    prior = featurizer.prior(LLMSettings(name="s", cost=1, takes_examples=True), 0.7, 3.0)
    moved = prior.transformed(prior, featurizer.adopt(statistics(1)))
    assert np.diag(moved.covariance)[FIRST:] == pytest.approx(np.diag(prior.covariance)[FIRST:])
    assert not moved.mean[FIRST:].any()
    assert moved.mean[:FIRST] == pytest.approx(prior.mean[:FIRST], abs=0.5)


def test_priors_expect_what_the_settings_say_and_more_with_examples() -> None:
    featurizer = Featurizer()
    typical = featurizer("q" * 147, None, [Selected(1, "q", "a", 0.75, 0.8)])
    plain = featurizer("q" * 147, None, [])
    small = featurizer.prior(LLMSettings(name="s", cost=1, takes_examples=True), 0.7, 3.0)
    large = featurizer.prior(LLMSettings(name="l", cost=1, takes_examples=False), 0.9, 3.0)
    assert sigmoid(small.at(plain)[0]) == pytest.approx(0.7, abs=0.01)
    assert sigmoid(small.at(typical)[0]) > 0.75
    assert sigmoid(large.at(plain)[0]) == pytest.approx(0.9, abs=0.01)
    assert sigmoid(large.at(typical)[0]) == pytest.approx(0.9, abs=0.01)


def test_only_an_llm_that_sees_examples_is_learnt_apart_with_and_without_them() -> None:
    featurizer = Featurizer()
    with_examples = featurizer("q" * 147, None, [Selected(1, "q", "a", 0.75, 0.8)])
    x, y = featurizer("q" * 147, None, []).astype(np.float64), with_examples.astype(np.float64)
    for sees, moved in ((True, 0.0), (False, 0.97)):
        llm = LLMSettings(name="s", cost=1, takes_examples=sees)
        prior = weights = featurizer.prior(llm, 0.7, 3.0)
        for _ in range(100):
            weights = weights.updated(x, rating_site(*weights.at(x), 0.0))
        fallen = [prior.at(context)[0] - weights.at(context)[0] for context in (x, y)]
        assert fallen[0] > 2
        assert fallen[1] / fallen[0] == pytest.approx(moved, abs=0.02)
