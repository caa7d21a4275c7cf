from __future__ import annotations

import re

import pytest
from echolm.words import words_of
from hypothesis import given
from hypothesis import strategies as st

ASCII = "".join(map(chr, range(128)))


@given(st.text() | st.text(st.sampled_from(ASCII)))
def test_words_are_those_of_a_regular_expression(text: str) -> None:
    assert words_of(text) == re.findall(r"\w+", text.lower())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("  Copy x_1\tto\x1c/srv/Data-2.", ["copy", "x_1", "to", "srv", "data", "2"]),
        ("Straße ÉTÉ 你好", ["straße", "été", "你好"]),
        (ASCII, ["0123456789", "abcdefghijklmnopqrstuvwxyz", "_", "abcdefghijklmnopqrstuvwxyz"]),
    ],
)
def test_words_are_in_lower_case_and_in_order(text: str, words: list[str]) -> None:
    assert words_of(text) == words
