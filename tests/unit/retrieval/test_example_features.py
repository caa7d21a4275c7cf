from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from echolm.conversation import Turn, transcript
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Candidate
from echolm.retrieval.features import (
    EXAMPLE_FEATURES,
    REQUEST_FEATURES,
    ExampleTexts,
    FeatureBatch,
    words_and_literals,
)
from hypothesis import given
from hypothesis import strategies as st
from selection_world import featurize

REQUEST = "restart the billing service on node-7 for Ada"
ANSWER = "svc restart billing --host node-7 --owner Ada"


def candidate(id: int, request: str, response: str, similarity: float = 0.9) -> Candidate:
    return Candidate(id, request, response, "public", 0.9, similarity)


def features(request: str, *found: Candidate) -> FeatureBatch:
    return featurize([request], [found], ExampleTexts(EstimatedTokens()))


def value(batch: FeatureBatch, name: str, column: int = 0) -> float:
    return float(batch.example[0, column, EXAMPLE_FEATURES.index(name)])


@pytest.mark.parametrize(
    ("text", "words", "literals"),
    [
        (REQUEST, {"restart", "the", "billing", "service", "on", "for"}, {"node-7", "ada"}),
        ("Restart it. Then call Bob!", {"restart", "it", "then", "call"}, {"bob"}),
        ('say "good morning" twice', {"say", "good", "morning", "twice"}, {"good morning"}),
        ("mail a@b.io about /tmp/x", {"mail", "about"}, {"a@b.io", "/tmp/x"}),
        ("SQL for TLS certificates", {"sql", "for", "tls", "certificates"}, set()),
        ("", set(), set()),
        ("… ?!", set(), set()),
    ],
)
def test_literals_are_told_from_words(text: str, words: set[str], literals: set[str]) -> None:
    assert words_and_literals(text) == (words, literals)


def test_a_look_alike_shares_all_words_but_one() -> None:
    batch = features(
        "restart the billing service on node-9",
        candidate(1, REQUEST.replace(" for Ada", ""), ANSWER),
        candidate(2, "restart the billing service on node-7 without backup", ANSWER),
    )
    assert value(batch, "request_containment", 0) == pytest.approx(0.0)
    assert value(batch, "example_containment", 0) == pytest.approx(0.0)
    assert value(batch, "request_containment", 1) == pytest.approx(0.0)
    assert value(batch, "example_containment", 1) == pytest.approx(5 / 7 - 1.0)


def test_the_same_words_count_less_after_a_history_that_is_less_alike() -> None:
    turns = [Turn("user", "what sold in {}?"), Turn("assistant", "7"), Turn("user", "and in May?")]

    def after(what: str) -> str:
        return transcript([replace(turns[0], text=turns[0].text.format(what)), *turns[1:]])

    found = [
        candidate(1, after("shops"), "sold 8 shops may", 0.9),
        candidate(2, after("shops"), "sold 9 shops may", 0.85),
        candidate(3, after("lisbon"), "rain and wind over there", 0.5),
        candidate(4, after("lisbon"), "rain and fog over there", 0.5),
    ]
    batch = features(after("shops"), *found)
    shared = [value(batch, "request_containment", k) for k in range(4)]
    assert shared[0] > shared[1] > shared[2] + 0.2
    agreed = [value(batch, "consensus", k) for k in range(4)]
    assert min(agreed[:2]) > max(agreed[2:])
    # What is no conversation has no history: its words are all that it says.
    plain = features("and in May?", *(replace(c, request="and in May?") for c in found))
    assert [value(plain, "request_containment", k) for k in range(4)] == [0.0] * 4


def test_a_response_that_lost_its_requests_values_shows() -> None:
    batch = features(REQUEST, candidate(1, REQUEST, ANSWER), candidate(2, REQUEST, "svc restart"))
    assert value(batch, "consistency", 0) == pytest.approx(0.0)
    assert value(batch, "consistency", 1) == pytest.approx(-1.0)


def test_a_response_unlike_its_neighbours_shows() -> None:
    names = ["Ada", "Bob", "Cy", "Di"]
    found = [
        candidate(
            i, REQUEST.replace("Ada", n), f"svc restart billing --fast --owner {n} && log done {n}"
        )
        for i, n in enumerate(names)
    ]
    found[2] = replace(found[2], response="DROP TABLE orders WHERE total IS NULL")
    batch = features(REQUEST, *found)
    consensus = [value(batch, "consensus", k) for k in range(4)]
    assert max(consensus[2], -1) < min(consensus[0], consensus[1], consensus[3]) - 0.5


def test_padding_holds_nothing() -> None:
    rows = [[candidate(1, "a b", "c"), candidate(2, "a c", "d")], [], [candidate(3, "e", "f")]]
    batch = featurize(["a b", "x", "e"], rows, ExampleTexts(EstimatedTokens()))
    assert batch.valid.tolist() == [[True, True], [False, False], [True, False]]
    assert batch.ids.tolist() == [[1, 2], [0, 0], [3, 0]]
    assert not batch.example[~batch.valid].any()
    assert batch.request.shape == (3, len(REQUEST_FEATURES))


def test_a_pair_has_the_same_features_in_any_batch() -> None:
    found = [candidate(i, f"copy file{i} to disk{i}", f"cp file{i} disk{i}") for i in range(4)]
    texts = ExampleTexts(EstimatedTokens())
    alone = featurize(["copy x1"], [found[:3]], texts)
    beside = featurize(["move", "copy x1"], [found, found[:3]], texts)
    assert np.allclose(alone.example[0], beside.example[1, :3], atol=1e-6)


def test_a_replayed_example_has_the_features_of_its_new_response() -> None:
    texts = ExampleTexts(EstimatedTokens())
    old, new = candidate(1, REQUEST, "lost"), candidate(1, REQUEST, ANSWER)
    before = featurize([REQUEST], [[old]], texts)
    tokens = texts.num_tokens(int(before.slots[0, 0]), old)
    after = featurize([REQUEST], [[new]], texts)
    assert value(before, "consistency") < value(after, "consistency")
    assert texts.num_tokens(int(after.slots[0, 0]), new) > tokens


def test_two_requests_may_see_an_example_before_and_after_its_replay() -> None:
    texts = ExampleTexts(EstimatedTokens())
    old, new = candidate(1, REQUEST, "lost"), candidate(1, REQUEST, ANSWER)
    both = featurize([REQUEST, REQUEST], [[old], [new]], texts)
    for row, one in enumerate((old, new)):
        alone = featurize([REQUEST], [[one]], ExampleTexts(EstimatedTokens()))
        assert np.array_equal(both.example[row], alone.example[0])


def test_many_examples_take_turns_in_little_room() -> None:
    small, large = ExampleTexts(EstimatedTokens(), 64), ExampleTexts(EstimatedTokens(), 4_096)
    rng = np.random.default_rng(0)
    for _ in range(60):
        found = [
            candidate(int(i), f"ask {i % 7} of {i}", f"say {i} now {i % 5}")
            for i in rng.choice(500, 32, replace=False)
        ]
        one, two = (featurize(["ask 3 of x"], [found], t) for t in (small, large))
        assert np.array_equal(one.example, two.example)
        tokens = [
            list(map(t.num_tokens, b.slots[0], found)) for t, b in ((small, one), (large, two))
        ]
        assert tokens[0] == tokens[1]


def test_a_batch_may_need_all_the_room() -> None:
    for capacity in (64, 128):
        small, large = (ExampleTexts(EstimatedTokens(), n) for n in (capacity, 4_096))
        for first, n in ((0, capacity), (1_000, 1), (2_000, capacity), (3_000, capacity)):
            found = [candidate(first + k, f"ask {k}", f"say {first} {k}") for k in range(n)]
            one, two = (featurize(["ask 3"], [found], texts) for texts in (small, large))
            assert len(set(one.slots[0].tolist())) == n
            assert np.array_equal(one.example, two.example)


def test_kept_new_and_changed_examples_of_a_batch_are_as_if_all_were_new() -> None:
    texts = ExampleTexts(EstimatedTokens(), 64)
    old = [candidate(k, f"ask {k} of x", f"say {k}") for k in range(8)]
    featurize(["ask 3"], [old], texts)
    changed = [candidate(k, f"ask {k} of x", f"say other {k}") for k in range(4)]
    found = [*old[4:], *changed, *(candidate(k, f"ask {k}", f"say {k}") for k in range(8, 12))]
    rows = [found, found[2:9]]  # the same ones for two requests
    mixed = featurize(["ask 3", "say 4"], rows, texts)
    fresh = featurize(["ask 3", "say 4"], rows, ExampleTexts(EstimatedTokens(), 64))
    assert np.array_equal(mixed.example, fresh.example)
    for sketches in ("request_sketches", "response_sketches"):
        one, two = (getattr(batch, sketches)[batch.valid] for batch in (mixed, fresh))
        assert np.array_equal(one, two)


@given(st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60)), max_size=6), st.text())
def test_any_text_has_finite_features(pairs: list[tuple[str, str]], request: str) -> None:
    found = [candidate(i, *pair) for i, pair in enumerate(pairs)]
    batch = features(request, *found)
    assert np.isfinite(batch.example).all()
    assert np.abs(batch.example).max(initial=0.0) < 6
