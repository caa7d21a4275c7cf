"""An LLM that the router can call, whatever serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from echolm.conversation import Turn, turns_of
from echolm.llm.templates import PromptTemplate
from echolm.llm.tokens import TokenCounter
from echolm.primitives import Completion, OnText, Request, Sampling, Selected
from echolm.settings import LLMSettings


class LLMClient(Protocol):
    """One LLM. Implementations are safe to call concurrently from one event loop."""

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_text: OnText | None
    ) -> Completion:
        """Generate one answer.

        Args:
            request_id: unique; by it the engine knows the generation if it has to stop.
            on_text: called on the event loop with each new piece; None: no pieces are wanted.

        Raises:
            InvalidRequestError: the LLM refuses the request.
            UnavailableError: the LLM failed.
            asyncio.CancelledError: the task was cancelled; the engine stops generating.
        """


@dataclass(frozen=True)
class LLMEndpoint:
    """One LLM that can answer, with all that calling it needs."""

    settings: LLMSettings
    client: LLMClient
    template: PromptTemplate
    tokens: TokenCounter

    def prompt(self, request: Request, examples: Sequence[Selected]) -> tuple[str, list[Selected]]:
        """The prompt, and the examples in it: those that fit beside the answer, in order.

        The least useful examples give way, and what was said before never does: an LLM refuses a
        conversation that is too long for it. An LLM that takes no examples gets none.
        """
        kept = list(examples) if self.settings.takes_examples else []
        room = self.settings.context_length - request.sampling.max_tokens
        while True:
            pairs = [pair for e in kept for pair in _pairs(turns_of(e.request), e.response)]
            *history, (last, _) = _pairs(request.turns, "")
            text = self.template.render(last, [*pairs, *history], request.system_prompt)
            # A token is at least one byte, so short prompts need no counting.
            if not kept or len(text.encode("utf-8")) <= room or self.tokens.count(text) <= room:
                return text, kept
            kept.remove(min(kept, key=lambda e: e.utility))


def _pairs(turns: Sequence[Turn], answer: str) -> list[tuple[str, str]]:
    """A conversation as what was said to the LLM and what it said; ``answer`` is its last."""
    pairs: list[tuple[str, str]] = []
    asked: list[str] = []
    for turn in turns:
        if turn.role != "assistant":
            asked.append(turn.text)
        else:
            pairs.append(("\n\n".join(asked), turn.text or turn.tool_calls))
            asked = []
    return [*pairs, ("\n\n".join(asked), answer)]
