"""Which stored answer might be given as it is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import pytest
from echolm.conversation import Turn, transcript
from echolm.primitives import Candidate
from echolm.retrieval.reuse import REUSE_FEATURES, find_reusable, normalised
from hypothesis import given
from hypothesis import strategies as st

KEY = "key"


def candidate(
    id: int, request: str, response: str = "answer", similarity: float = 0.9, keys: str = KEY
) -> Candidate:
    return Candidate(id, request, response, "t", 0.9, similarity, keys)


def features(text: str, candidates: Sequence[Candidate]) -> dict[str, float]:
    found = find_reusable(text, KEY, candidates)
    assert found is not None
    return dict(zip(REUSE_FEATURES, found.features.tolist(), strict=True))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("list files", "  list files\n"),
        ("list files", "list   files"),
        ("list\tfiles", "list files"),
        ("list\u00a0files", "list files"),
        ("caf\u00e9", "cafe\u0301"),
        ("one\r\ntwo", "one\ntwo"),
    ],
)
def test_blank_space_and_unicodes_forms_make_no_difference(a: str, b: str) -> None:
    assert normalised(a) == normalised(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("list files", "List files"),
        ("list files", "list files?"),
        ("list files", "listfiles"),
        ("if a:\n  b\nc", "if a:\n  b\n  c"),
        ("one\ntwo", "one two"),
        ("x\u00b2", "x2"),
        ("from a to b", "from b to a"),
    ],
)
def test_whatever_may_change_the_answer_makes_a_difference(a: str, b: str) -> None:
    assert normalised(a) != normalised(b)


@given(st.text())
def test_what_is_normalised_stays_as_it_is(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once == unicodedata.normalize("NFC", once)


def test_an_exact_repeat_is_found_however_many_are_nearer() -> None:
    found = find_reusable(
        "list files ",
        KEY,
        [candidate(1, "list all files", "ls -a", 0.99), candidate(2, "list files", "ls", 0.98)],
    )
    assert found is not None
    assert (found.id, found.response, found.exact) == (2, "ls", True)


@pytest.mark.parametrize("keys", ["", "other", "other keyed", "replayed"])
def test_an_answer_given_under_another_key_is_not_found(keys: str) -> None:
    assert find_reusable("list files", KEY, [candidate(1, "list files", keys=keys)]) is None


def test_an_answer_given_under_several_keys_is_found() -> None:
    assert find_reusable("q", KEY, [candidate(1, "q", keys="other key more")]) is not None


def test_without_a_key_nothing_is_found() -> None:
    assert find_reusable("list files", "", [candidate(1, "list files", keys="")]) is None


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("add 3 and 4", "add 3 and 5"),
        ("does it work with Google pay", "does it work with Apple pay"),
        ("move from savings to checking", "move from checking to savings"),
        ("why is my card not working", "why is my card working"),
        ("can I withdraw without a card", "can I withdraw a card"),
        ("my card doesn't work", "my card does work"),
        ('show "a.txt"', 'show "b.txt"'),
    ],
)
def test_other_values_other_order_and_negations_are_no_repeats(text: str, stored: str) -> None:
    assert find_reusable(text, KEY, [candidate(1, stored, similarity=0.999)]) is None


def test_of_a_long_request_only_the_same_text_is_a_repeat() -> None:
    document = "word " * 500
    stored = [candidate(1, f"{document} what is first", similarity=1.0)]
    assert find_reusable(f"{document} what is last", KEY, stored) is None
    found = find_reusable(f"{document} what is first", KEY, stored)
    assert found is not None and found.exact


def test_a_look_alike_that_cannot_be_right_gives_way_to_the_next() -> None:
    found = find_reusable(
        "wait 3 days",
        KEY,
        [candidate(1, "wait 4 days", "four"), candidate(2, "wait for 3 days", "three", 0.8)],
    )
    assert found is not None
    assert (found.id, found.exact) == (2, False)
    assert dict(zip(REUSE_FEATURES, found.features.tolist(), strict=True))["passed_over"] == 1.0


def test_neighbours_with_other_answers_show_in_the_features() -> None:
    agreeing = [candidate(1, "where is it", "a", 0.9), candidate(2, "where was it", "a", 0.8)]
    contrary = [candidate(1, "where is it", "a", 0.9), candidate(2, "where was it", "b", 0.8)]
    agrees, differs = features("where it is now", agreeing), features("where it is now", contrary)
    assert (agrees["disagreement"], agrees["contrary_nearness"]) == (0.0, 0.0)
    assert differs["disagreement"] == 1.0
    assert differs["contrary_nearness"] > 0.0


def test_features_are_finite_whatever_the_texts_are() -> None:
    for text in ("", " ", "?", "word " * 3_000, "\ud7ff"):
        found = find_reusable(text, KEY, [candidate(1, "stored", similarity=1.0001)])
        assert found is None or np.isfinite(found.features).all()


def after(asked: str, said: str, text: str) -> str:
    return transcript([Turn("user", asked), Turn("assistant", said), Turn("user", text)])


def test_only_the_same_history_lets_a_conversation_have_a_stored_answer() -> None:
    request = after("rain in Rome?", "no", "and in May?")
    assert find_reusable(
        request, KEY, [candidate(1, after("rain in  Rome?", "no ", "and in May?"))]
    )
    near = find_reusable(request, KEY, [candidate(1, after("rain in Rome?", "no", "but in May?"))])
    assert near is not None
    assert not near.exact
    for other in (
        "and in May?",
        after("rain in Oslo?", "no", "and in May?"),
        after("rain in Rome?", "yes", "and in May?"),
        "urain in Rome? ano uand in May?",
    ):
        assert find_reusable(request, KEY, [candidate(1, other)]) is None
        assert find_reusable(other, KEY, [candidate(1, request)]) is None


def test_of_what_was_not_seen_whole_only_the_same_text_is_answered_from_the_store() -> None:
    def unseen(text: str) -> float:
        return 0.1 if len(text) > 30 else 0.0

    long, nearly = "please list all of the files in here", "please list all the files in here"
    assert find_reusable(long, KEY, [candidate(1, nearly)], unseen) is None
    assert find_reusable("list all files", KEY, [candidate(1, nearly)], unseen) is None
    same = find_reusable(long, KEY, [candidate(1, nearly), candidate(2, long)], unseen)
    assert same is not None
    assert (same.id, same.exact) == (2, True)
