"""What the router asks of an LLM, whatever serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from echolm.errors import UnavailableError


@dataclass(frozen=True)
class Sampling:
    """How to sample one answer.

    Attributes:
        max_tokens: most new tokens.
        temperature: 0 is greedy.
        top_k: 0 is off.
        seed: None lets the engine choose.
        stop: strings that end the answer; they are not part of it.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One finished answer.

    Attributes:
        finish_reason: ``stop`` | ``length`` | ``cancelled``.
        num_input_tokens: prompt length, or -1 where the LLM's contract does not tell it.
        num_output_tokens: likewise.
    """

    text: str
    finish_reason: str
    num_input_tokens: int = -1
    num_output_tokens: int = -1


OnText = Callable[[str], None]


class LLMClient(Protocol):
    """One LLM. Implementations are safe to call concurrently from one event loop."""

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_text: OnText | None
    ) -> Completion:
        """Generate one answer.

        Args:
            request_id: unique; names the generation to the engine when it has to stop.
            on_text: called on the event loop with each new piece of text; None asks for the
                whole answer at once.

        Raises:
            InvalidRequestError: the LLM refuses the request.
            UnavailableError: the LLM failed.
            asyncio.CancelledError: the task was cancelled; the engine stops generating.
        """
        ...


@dataclass
class FakeLLM:
    """An LLM for unit tests: answers with ``reply(prompt)`` after ``delay_s``, or fails.

    Attributes:
        fail_after: pieces it streams before ``error`` is raised; None never fails.
    """

    reply: Callable[[str], str] = lambda prompt: "ok"
    delay_s: float = 0.0
    error: Exception | None = None
    fail_after: int = 0
    finish_reason: str = "stop"
    prompts: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_text: OnText | None
    ) -> Completion:
        self.prompts.append(prompt)
        try:
            await asyncio.sleep(self.delay_s)
            words = self.reply(prompt).split(" ")
            for i, word in enumerate(words):
                if self.error is not None and i >= self.fail_after:
                    raise self.error
                if on_text is not None:
                    on_text(word if i == 0 else f" {word}")
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        return Completion(" ".join(words), self.finish_reason, len(prompt.split()), len(words))


def failing_llm(message: str = "LLM is down") -> FakeLLM:
    """A FakeLLM that is unavailable."""
    return FakeLLM(error=UnavailableError(message))
