"""What the router's service needs from others; each implementation takes the form given here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from echolm.primitives import Answer, Interaction, Served


class InteractionSink(Protocol):
    """Takes interactions that may become examples."""

    async def submit(self, interaction: Interaction) -> None:
        """Submit one interaction; EchoError if it could not be taken."""


class AnswerObserver(Protocol):
    """Sees every answer that was given."""

    def served(self, served: Served) -> None:
        """Take note of an answer; returns at once and never raises."""


@dataclass(frozen=True)
class Observers:
    """Several observers, or none, as one."""

    all: Sequence[AnswerObserver] = ()

    def served(self, served: Served) -> None:
        for observer in self.all:
            observer.served(served)


Stage = Literal["selection", "decision", "generation", "first_token"]
"""The parts of a request's time that are measured.

``selection`` lasts from the request's beginning until it is decided, ``decision`` is the router's
part of it, for all requests of a batch together. ``first_token`` lasts from the request's beginning
to the first piece of text, and is measured for streams only; ``generation`` as long as the LLM's
work.
"""


class RouterMetrics(Protocol):
    """Counts what the router does."""

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None:
        """Count an answer, which took so many seconds from the request.

        Args:
            chosen: name of the LLM that the router chose; another may have answered for it.
        """

    def took(self, stage: Stage, seconds: float, llm: str = "") -> None:
        """Observe how long a stage took; ``generation`` and ``first_token`` have an LLM's name."""

    def reuse(self, action: str) -> None:
        """Count a request for which a stored answer was found: ``give`` | ``check`` | ``leave``."""

    def conversation(self, result: Literal["stayed", "moved"]) -> None:
        """Count an answer in a conversation: by the LLM that has answered it so far, or another."""

    def degraded(self, part: str, reason: str) -> None:
        """Count a part that failed and without which the request goes on."""

    def failed(self, reason: str) -> None:
        """Count a request without an answer."""


class NoMetrics:
    """Counts nothing."""

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None: ...
    def took(self, stage: Stage, seconds: float, llm: str = "") -> None: ...
    def reuse(self, action: str) -> None: ...
    def conversation(self, result: Literal["stayed", "moved"]) -> None: ...
    def degraded(self, part: str, reason: str) -> None: ...
    def failed(self, reason: str) -> None: ...
