"""Pieces of a stream gather: the first and the end never wait, and nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from echolm.engines.gathering import Gatherer


class World:
    """A clock that is moved by hand and what was to be called later; ``sent`` has all that went."""

    def __init__(self, interval_s: float = 1.0) -> None:
        self.now = 0.0
        self.sent: list[str] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.error: Exception | None = None
        self.pieces = Gatherer[str](
            self._send, "".join, interval_s, self._call_later, lambda: self.now
        )

    def _send(self, text: str) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append(text)

    def _call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        assert delay_s > 0
        self.due.append((self.now + delay_s, call))

    def pass_to(self, now: float) -> None:
        """Move the clock and call what is due."""
        self.now = now
        due, self.due = self.due, []
        for at, call in due:
            if at <= now:
                call()
            else:
                self.due.append((at, call))


def test_the_first_piece_goes_at_once_and_the_next_ones_together() -> None:
    world = World()
    world.pieces("a")
    assert world.sent == ["a"]
    for piece in ("b", "c", "d"):
        world.now += 0.2
        world.pieces(piece)
    assert world.sent == ["a"]
    world.pass_to(1.0)
    assert world.sent == ["a", "bcd"]
    world.now = 1.5
    world.pieces("e")
    world.pass_to(2.0)
    assert world.sent == ["a", "bcd", "e"]
    assert world.due == []


def test_a_piece_after_the_interval_does_not_wait() -> None:
    world = World()
    for now in (0.0, 1.0, 2.5, 9.0):
        world.now = now
        world.pieces(str(now))
    assert world.sent == ["0.0", "1.0", "2.5", "9.0"]
    assert world.due == []  # nor is anything to be called later


def test_an_interval_of_0_sends_every_piece_by_itself() -> None:
    world = World(interval_s=0.0)
    for piece in "abc":
        world.pieces(piece)
    assert world.sent == ["a", "b", "c"]
    assert world.due == []


def test_the_end_sends_what_has_gathered_once() -> None:
    world = World()
    for piece in "abc":
        world.pieces(piece)
    world.pieces.flush()
    assert world.sent == ["a", "bc"]
    world.pass_to(5.0)
    world.pieces.flush()
    assert world.sent == ["a", "bc"]


def test_what_nobody_wants_is_not_sent() -> None:
    world = World()
    for piece in "abc":
        world.pieces(piece)
    world.pieces.drop()
    world.pass_to(5.0)
    world.pieces.flush()
    assert world.sent == ["a"]


def test_what_sending_raises_reaches_the_caller() -> None:
    world = World()
    world.error = RuntimeError("the server is stopping")
    with pytest.raises(RuntimeError, match="stopping"):
        world.pieces("a")
    world.error = None
    world.pieces("b")
    world.pieces("c")
    world.error = RuntimeError("the server is stopping")
    with pytest.raises(RuntimeError, match="stopping"):
        world.pieces.flush()


def test_a_failure_at_an_intervals_end_ends_the_stream() -> None:
    world = World()
    world.pieces("a")
    world.pieces("b")
    world.error = RuntimeError("the server is stopping")
    world.pass_to(1.0)
    world.error = None
    with pytest.raises(RuntimeError, match="stopping"):
        world.pieces.flush()
    with pytest.raises(RuntimeError, match="stopping"):
        world.now = 3.0
        world.pieces("c")
    assert world.sent == ["a"]  # no text after a gap


def test_pieces_of_one_thread_and_intervals_of_another_keep_their_order() -> None:
    sent: list[str] = []

    def call_later(delay_s: float, call: Callable[[], None]) -> None:
        timer = threading.Timer(delay_s, call)
        timer.daemon = True
        timer.start()

    pieces = Gatherer[str](sent.append, "".join, 0.0005, call_later)
    given = [f"{n} " for n in range(400)]
    for piece in given:
        pieces(piece)
        time.sleep(0.0001)
    pieces.flush()
    assert "".join(sent) == "".join(given)
    assert sent[0] == "0 "
