from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from echolm.bandit.features import SCALARS, Featurizer
from echolm.primitives import Selected
from echolm.settings import LLMSettings
from hypothesis import given
from hypothesis import strategies as st

E = np.linspace(-1, 1, 8, dtype=np.float32)
texts = st.text("ab c", max_size=8)
examples = st.lists(
    st.tuples(texts, texts, st.sampled_from([0.2, 0.7, 0.9]), st.floats(0, 1)), max_size=5
).map(lambda rows: [Selected(i, *row) for i, row in enumerate(rows)])


def value(x: np.ndarray, name: str) -> float:  # type: ignore[type-arg]
    return float(x[SCALARS.index(name)])


@given(examples, st.integers(0, 5), texts)
def test_the_context_has_its_dimension_and_finite_numbers(
    chosen: list[Selected], projected: int, text: str
) -> None:
    featurizer = Featurizer(projected)
    x = featurizer(text, E, chosen)
    assert x.shape == (featurizer.dimension,) == (len(SCALARS) + projected,)
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    assert np.abs(x.astype(np.float16)).max() < 100  # it travels as FP16


@given(examples, st.randoms())
def test_the_context_does_not_depend_on_the_order_of_examples(
    chosen: list[Selected], random: object
) -> None:
    shuffled = list(chosen)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    featurizer = Featurizer(4)
    assert featurizer("a b", E, chosen) == pytest.approx(featurizer("a b", E, shuffled), abs=1e-6)


def test_without_examples_only_the_request_speaks() -> None:
    x = Featurizer(3)("hello", E, [])
    assert value(x, "irrelevance") == 1
    assert value(x, "log_length") == pytest.approx((math.log1p(5) / 10 - 0.45) / 4)
    others = set(SCALARS) - {"irrelevance", "log_length"}
    assert all(value(x, name) == 0 for name in others)
    assert np.abs(x[len(SCALARS) :]).max() > 0


def test_without_an_embedding_the_projection_is_zero() -> None:
    assert not Featurizer(3)("hello", None, [])[len(SCALARS) :].any()


def test_relevance_goes_from_the_least_similarity_to_its_saturation() -> None:
    featurizer = Featurizer(0, min_similarity=0.6, similarity_saturation=0.8)

    def found(name: str) -> list[float]:
        contexts = (
            featurizer("q", E, [Selected(1, "q", "a", similarity, 0.5)])
            for similarity in (0.5, 0.6, 0.7, 0.8, 0.95)
        )
        return [value(x, name) for x in contexts]

    assert found("relevance") == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)
    assert found("irrelevance") == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-6)


# From the centres: similarity 0.8, utility 0.8, two examples, half of the words in common.
CENTRED = {
    "best_similarity": 0.9 - 0.8,
    "mean_similarity": 0.75 - 0.8,
    "similarity_margin": 0.9 - 0.75,
    "best_utility": 0.7 - 0.8,
    "num_examples": 3 / 4 - 0.5,
    "request_overlap": 2 / 3 - 0.5,
    "response_agreement": 5 / 9 - 0.5,
}


@pytest.mark.parametrize(("saturation", "relevance"), [(0.85, 1.0), (1.2, 0.5)])
def test_the_scalars_count_as_far_as_the_examples_are_relevant(
    saturation: float, relevance: float
) -> None:
    chosen = [
        Selected(1, "list files", "ls a", 0.9, 0.7),
        Selected(2, "x", "ls b", 0.6, 0.6),
        Selected(3, "y", "ls a", 0.75, 0.5),
    ]
    x = Featurizer(0, similarity_saturation=saturation)("list all files", E, chosen)
    assert {"irrelevance", "relevance", "log_length", *CENTRED} == set(SCALARS)
    for name, centred in CENTRED.items():
        assert value(x, name) == pytest.approx(relevance * centred, abs=1e-6), name
    assert value(x, "relevance") == pytest.approx(relevance)
    assert value(x, "log_length") == pytest.approx((math.log1p(14) / 10 - 0.45) / 4)


GOLDEN = [0.057711, -0.025273, -0.269746]


def test_the_projection_is_the_same_in_every_process() -> None:
    code = (
        "import json, numpy as np; from echolm.bandit.features import Featurizer; "
        "e = np.linspace(-1, 1, 8, dtype=np.float32); "
        "print(json.dumps(Featurizer(3)('q', e, [])[-3:].tolist()))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == pytest.approx(GOLDEN, abs=2.5e-5)
    assert Featurizer(3)("q", E, [])[-3:] == pytest.approx(GOLDEN, abs=2.5e-5)


def test_priors_expect_quality_with_a_relevant_example_only() -> None:
    featurizer = Featurizer(2)
    relevant = featurizer("q", None, [Selected(1, "q", "a", 0.95, 0.9)])
    small = LLMSettings(name="s", cost=1, takes_examples=True, prior_quality=0.9)
    large = LLMSettings(name="l", cost=1, takes_examples=False, prior_quality=0.95)
    for x, expected in ((relevant, (0.9, 0.95)), (featurizer("q", None, []), (0.3, 0.95))):
        found = tuple(float(featurizer.prior_mean(llm) @ x) for llm in (small, large))
        assert found == pytest.approx(expected)
