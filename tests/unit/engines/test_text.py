"""Incremental text: whole characters, stop words never seen by the client."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from echolm.engines.text import IncrementalDecoder, StopWords
from hypothesis import given
from hypothesis import strategies as st


def decode(ids: Sequence[int]) -> str:
    """A byte-level vocabulary: a token is a byte."""
    return bytes(ids).decode("utf-8", "replace")


def test_character_of_four_tokens_comes_whole() -> None:
    decoder = IncrementalDecoder(decode)
    assert [decoder.push([byte]) for byte in "😀!".encode()] == ["", "", "", "😀", "!"]


def test_incomplete_character_at_the_end_is_replaced() -> None:
    decoder = IncrementalDecoder(decode)
    assert decoder.push(list("a😀".encode()[:3])) == "a"
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_text_that_stays_broken_is_not_held_for_ever() -> None:
    decoder = IncrementalDecoder(decode)
    assert any(decoder.push([0x80]) for _ in range(20))


def test_decoder_that_drops_the_first_space_keeps_the_others() -> None:
    def drop_first(ids: Sequence[int]) -> str:
        return "".join(f" {chr(i)}" for i in ids)[1:]

    decoder = IncrementalDecoder(drop_first)
    assert "".join(decoder.push([ord(c)]) for c in "abc") == "a b c"


@given(st.text(), st.lists(st.integers(1, 5), min_size=1))
def test_pieces_join_to_the_text(text: str, sizes: list[int]) -> None:
    decoder = IncrementalDecoder(decode)
    ids, pieces, at, i = list(text.encode()), [], 0, 0
    while at < len(ids):
        size = sizes[i % len(sizes)]
        piece = decoder.push(ids[at : at + size])
        piece.encode("utf-8")
        pieces.append(piece)
        at, i = at + size, i + 1
    assert "".join(pieces) + decoder.flush() == text


def test_stop_word_split_over_pieces_is_cut() -> None:
    stop = StopWords(["<end>"])
    assert [stop.push(piece) for piece in ("ab<", "en", "d>cd", "e")] == ["ab", "", "", ""]
    assert stop.matched == "<end>"
    assert stop.flush() == ""


def test_false_start_of_a_stop_word_is_given_back() -> None:
    stop = StopWords(["<end>"])
    assert stop.push("a<en") == "a"
    assert stop.push("x<e") == "<enx"
    assert stop.flush() == "<e"
    assert stop.matched is None


def test_earliest_stop_word_wins_then_the_longest() -> None:
    stop = StopWords(["b", "abc", "ab"])
    assert stop.push("xabc") == "x"
    assert stop.matched == "abc"


def test_without_stop_words_nothing_is_held() -> None:
    assert StopWords([]).push("text") == "text"


@given(
    st.text("ab<", max_size=40),
    st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
    st.integers(1, 7),
)
def test_stop_words_cut_as_on_the_whole_text(text: str, words: list[str], size: int) -> None:
    stop = StopWords(words)
    out = "".join(stop.push(text[i : i + size]) for i in range(0, len(text), size)) + stop.flush()
    assert text.startswith(out)
    if size >= len(text):  # In one piece: exactly what str.find says.
        cuts = [at for word in words if (at := text.find(word)) >= 0]
        assert out == (text[: min(cuts)] if cuts else text)
    if stop.matched is None:
        assert out == text
        assert not any(word in text for word in words)
    else:
        assert text[len(out) :].startswith(stop.matched)
        assert not any(word in out for word in words)


@pytest.mark.parametrize("words", [["\n"], ["###", "\n\n"]])
def test_stop_word_in_the_first_piece_gives_no_text(words: list[str]) -> None:
    stop = StopWords(words)
    assert stop.push(words[0] + "rest") == ""
    assert stop.matched == words[0]
