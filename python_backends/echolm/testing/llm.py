"""LLM clients without an LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from echolm.errors import UnavailableError
from echolm.llm.optional_inputs import optional_inputs
from echolm.primitives import Completion, OnPiece, Piece, Sampling


@dataclass
class FakeLLM:
    """An LLM for unit tests: answers with ``reply(prompt)`` after ``delay_s``, or fails.

    Attributes:
        fail_after: pieces it streams before ``error`` is raised, if there is one.
        cannot_take: names of optional inputs.
        samplings: of the requests that came.
    """

    reply: Callable[[str], str] = lambda prompt: "ok"
    delay_s: float = 0.0
    error: Exception | None = None
    fail_after: int = 0
    finish_reason: str = "stop"
    prompts: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    cannot_take: tuple[str, ...] = ()
    samplings: list[Sampling] = field(default_factory=list)

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        return [name for name in optional_inputs(sampling) if name in self.cannot_take]

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        try:
            await asyncio.sleep(self.delay_s)
            words = self.reply(prompt).split(" ")
            for i, word in enumerate(words):
                if self.error is not None and i >= self.fail_after:
                    raise self.error
                if on_piece is not None:
                    on_piece(Piece(word if i == 0 else f" {word}"))
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        return Completion(" ".join(words), self.finish_reason, len(prompt.split()), len(words))


def failing_llm(message: str = "LLM is down") -> FakeLLM:
    """A FakeLLM that is unavailable."""
    return FakeLLM(error=UnavailableError(message))
