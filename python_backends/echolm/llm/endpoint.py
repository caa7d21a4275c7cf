"""An LLM that the router can call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from echolm.llm.client import LLMClient
from echolm.llm.templates import PromptTemplate
from echolm.llm.tokens import TokenCounter
from echolm.primitives import Request, Selected
from echolm.settings import LLMSettings


@dataclass(frozen=True)
class LLMEndpoint:
    """One LLM that can answer, with all that calling it needs."""

    settings: LLMSettings
    client: LLMClient
    template: PromptTemplate
    tokens: TokenCounter

    def prompt(self, request: Request, examples: Sequence[Selected]) -> tuple[str, list[Selected]]:
        """The prompt, and the examples in it: those that fit beside the answer, in order.

        The least useful examples give way. An LLM that takes no examples gets none.
        """
        kept = list(examples) if self.settings.takes_examples else []
        room = self.settings.context_length - request.sampling.max_tokens
        while True:
            pairs = [(e.request, e.response) for e in kept]
            text = self.template.render(request.text, pairs, request.system_prompt)
            # A token is at least one byte, so short prompts need no counting.
            if not kept or len(text.encode("utf-8")) <= room or self.tokens.count(text) <= room:
                return text, kept
            kept.remove(min(kept, key=lambda e: e.utility))
