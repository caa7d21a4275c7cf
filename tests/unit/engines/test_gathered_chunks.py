"""Chunks of an answer gather on their way out of the LLM's model."""

from __future__ import annotations

from collections.abc import Callable

from echolm.engines.base import FINISH_CANCELLED, FINISH_STOP, GenerationChunk, OnChunk, gathered
from echolm.errors import UnavailableError

Event = GenerationChunk | Exception


def chunk(text: str, tokens: int, finish_reason: str | None = None) -> GenerationChunk:
    return GenerationChunk(text, finish_reason, 5, tokens)


def taker(interval_s: float = 1.0) -> tuple[OnChunk, list[Event], list[Callable[[], None]]]:
    """What takes the engine's events; what it passes on; what it wants to be called later."""
    passed: list[Event] = []
    due: list[Callable[[], None]] = []
    return gathered(passed.append, interval_s, lambda _, call: due.append(call)), passed, due


def test_gathered_chunks_have_the_whole_text_and_the_newest_counts() -> None:
    take, passed, due = taker()
    for tokens, text in enumerate("abc", 1):
        take(chunk(text, tokens))
    assert passed == [chunk("a", 1)]
    [interval_over] = due
    interval_over()
    assert passed == [chunk("a", 1), chunk("bc", 3)]


def test_the_last_chunk_never_waits_and_brings_what_has_gathered() -> None:
    for reason in (FINISH_STOP, FINISH_CANCELLED):
        take, passed, due = taker()
        take(chunk("a", 1))
        take(chunk("b", 2))
        take(chunk("c", 3, reason))
        assert passed == [chunk("a", 1), chunk("bc", 3, reason)]
        for interval_over in due:
            interval_over()
        assert len(passed) == 2


def test_an_answer_of_one_chunk_is_passed_on_at_once() -> None:
    take, passed, _ = taker()
    take(chunk("all", 1, FINISH_STOP))
    assert passed == [chunk("all", 1, FINISH_STOP)]


def test_an_error_comes_after_the_text_before_it() -> None:
    take, passed, due = taker()
    problem = UnavailableError("died")
    for event in (chunk("a", 1), chunk("b", 2), problem):
        take(event)
    assert passed == [chunk("a", 1), chunk("b", 2), problem]
    for interval_over in due:
        interval_over()
    assert passed[-1] is problem


def test_without_an_interval_nothing_gathers() -> None:
    take, passed, _ = taker(0.0)
    for text in "ab":
        take(chunk(text, 1))
    assert passed == [chunk("a", 1), chunk("b", 1)]
