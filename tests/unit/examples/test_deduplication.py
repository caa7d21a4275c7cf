from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from echolm.conversation import Turn, transcript
from echolm.examples.deduplication import (
    NEW,
    Comparison,
    DuplicateFinder,
    Finding,
    same_answer,
    same_request,
)
from echolm.primitives import Sampling
from echolm.store.base import REPLAYED, Example, Stored, answer_key, scope_key
from echolm.testing.store import InMemoryStore
from hypothesis import given
from hypothesis import strategies as st


def entry(id: int, **changes: Any) -> Stored:
    values: dict[str, Any] = {
        "request": "list files",
        "response": "ls",
        "tenant": "t",
        "scope": scope_key("t", ""),
        "source_llm": "large",
        "quality": 0.9,
        "created_at_ms": 1,
        "updated_at_ms": 1,
    }
    return Example(id=id, **(values | changes)), np.ones(2, np.float32) / np.sqrt(2)


@pytest.fixture
def store() -> InMemoryStore:
    store = InMemoryStore(2)
    example, embedding = entry(1)
    store.upsert([example], embedding[None])
    return store


def compare(store: InMemoryStore, *entries: Stored) -> list[Comparison]:
    return DuplicateFinder(store).compare(entries, 10)


def test_a_request_that_is_not_known_is_new(store: InMemoryStore) -> None:
    assert compare(store, entry(2, request="list directories")) == [NEW]


def test_the_same_answer_to_the_same_request_says_nothing_new(store: InMemoryStore) -> None:
    again = entry(2, request=" List  FILES.", response="ls")
    assert compare(store, again) == [Comparison(Finding.REPEATED, 1)]


def test_a_better_answer_takes_the_place_of_the_known_one(store: InMemoryStore) -> None:
    better = entry(2, response="ls -la", quality=0.95)
    assert compare(store, better) == [Comparison(Finding.BETTER, 1)]


def test_an_answer_that_is_no_better_does_not(store: InMemoryStore) -> None:
    assert compare(store, entry(2, response="dir")) == [Comparison(Finding.WORSE, 1)]


def test_the_same_answer_under_another_key_is_confirmed(store: InMemoryStore) -> None:
    assert compare(store, entry(2, answer_keys="k1")) == [Comparison(Finding.CONFIRMED, 1)]
    store.upsert([entry(1, answer_keys="k1 k2")[0]], entry(1)[1][None])
    assert compare(store, entry(2, answer_keys="k2")) == [Comparison(Finding.REPEATED, 1)]
    # To the letter, since it is given as it is.
    other = entry(2, answer_keys="k3", response="LS")
    assert compare(store, other) == [Comparison(Finding.REPEATED, 1)]


def test_an_answer_that_may_be_given_replaces_one_that_may_not(store: InMemoryStore) -> None:
    key = answer_key(Sampling(), "large", "")
    assert compare(store, entry(2, response="dir", answer_keys=key)) == [
        Comparison(Finding.BETTER, 1)
    ]
    worse = entry(2, response="dir", answer_keys=key, quality=0.8)
    assert compare(store, worse) == [Comparison(Finding.WORSE, 1)]


@pytest.mark.parametrize(
    ("known", "finding"),
    [
        (answer_key(Sampling(), "large", ""), Finding.WORSE),
        (answer_key(Sampling(7), "large", ""), Finding.WORSE),
        (answer_key(Sampling(), "large", "former"), Finding.BETTER),
        (REPLAYED, Finding.WORSE),
    ],
)
def test_answers_of_a_former_revision_give_way(
    store: InMemoryStore, known: str, finding: Finding
) -> None:
    store.upsert([entry(1, answer_keys=known)[0]], entry(1)[1][None])
    new = entry(2, response="dir", answer_keys=answer_key(Sampling(), "large", ""))
    assert compare(store, new) == [Comparison(finding, 1)]


def test_what_replay_has_found_is_not_given_under_any_key(store: InMemoryStore) -> None:
    store.upsert([entry(1, answer_keys=REPLAYED)[0]], entry(1)[1][None])
    assert compare(store, entry(2, answer_keys="k")) == [Comparison(Finding.REPEATED, 1)]


def test_another_tenants_and_another_scopes_examples_do_not_count(store: InMemoryStore) -> None:
    tenant = entry(2, tenant="u", scope=scope_key("u", ""))
    scope = entry(3, scope=scope_key("t", "be brief"))
    assert compare(store, tenant, scope) == [NEW, NEW]


def test_interactions_of_one_batch_are_compared_with_each_other(store: InMemoryStore) -> None:
    first, second = (entry(i, request="show disk usage", response="df") for i in (2, 3))
    assert compare(store, first, second) == [NEW, Comparison(Finding.REPEATED, 2)]


def test_an_interaction_that_was_stored_before_a_crash_is_still_new(store: InMemoryStore) -> None:
    assert compare(store, entry(1)) == [NEW]


def test_requests_that_differ_in_a_word_or_its_place_are_different() -> None:
    assert not same_request("list files", "list file")
    assert not same_request("copy a to b", "copy b to a")
    assert same_request("Copy  a to b.", "copy a to b")


def test_conversations_are_the_same_only_turn_by_turn() -> None:
    def talk(*texts: str) -> str:
        roles = ("user", "assistant", "user")
        return transcript([Turn(*turn) for turn in zip(roles, texts, strict=True)])

    asked = talk("rain in Rome?", "No.", "and in May?")
    assert same_request(asked, talk("Rain in Rome", "no", "And in  May?"))
    assert not same_request(asked, talk("rain in Oslo?", "No.", "and in May?"))
    assert not same_request(asked, talk("rain in Rome? No.", "", "and in May?"))
    assert not same_request(asked, "and in May?")
    assert not same_request(asked, "urain in rome ano uand in may")


def test_answers_that_differ_in_a_number_are_different() -> None:
    long = " ".join(f"word{c}" for c in "abcdefghijklmnopqrstuvwxyz")
    assert same_answer(long, long.replace("worda", "other"))
    assert not same_answer(f"{long} 80", f"{long} 81")
    assert not same_answer("cp a b", "cp b a")


@given(st.text(max_size=80))
def test_a_text_is_the_same_as_itself(text: str) -> None:
    assert same_request(text, text) and same_answer(text, text)
