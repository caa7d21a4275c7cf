"""An LLM that the router can call, whatever serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from echolm.conversation import Turn
from echolm.errors import InvalidRequestError
from echolm.llm.chat_template import few_shot
from echolm.llm.examples_block import examples_block
from echolm.llm.tokens import TokenCounter
from echolm.primitives import Completion, OnPiece, Request, Sampling, Selected
from echolm.settings import LLMSettings


class LLMClient(Protocol):
    """One LLM. Implementations are safe to call concurrently from one event loop."""

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        """Generate one answer.

        Args:
            request_id: unique; by it the engine knows the generation if it has to stop.
            on_piece: called on the event loop with each new piece; None: no pieces are wanted.

        Raises:
            InvalidRequestError: the LLM refuses the request.
            UnavailableError: the LLM failed.
            asyncio.CancelledError: the task was cancelled; the engine stops generating.
        """

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        """Names of the inputs of ``echolm`` that the LLM cannot take, as far as is known.

        They are among those that the sampling needs: :mod:`echolm.llm.optional_inputs`.
        """


class ServedLLM(LLMClient, Protocol):
    """An LLM behind a server, which can be asked whether it is there."""

    async def check(self) -> None:
        """UnavailableError if the server does not answer or does not have the LLM."""


class PromptTemplate(Protocol):
    """How an LLM's prompt is written.

    Attributes:
        stop: what ends an answer besides what a request says.
    """

    @property
    def stop(self) -> tuple[str, ...]: ...

    def render(self, turns: Sequence[Turn]) -> str:
        """The text that the LLM's client takes as the prompt of a conversation.

        Args:
            turns: oldest first; the system prompt is the first one, if there is one.

        Raises:
            InvalidRequestError: the template refuses the conversation.
        """


@dataclass(frozen=True)
class LLMEndpoint:
    """One LLM that can answer, with all that calling it needs.

    Attributes:
        examples_as: ``examples.format``.
    """

    settings: LLMSettings
    client: LLMClient
    template: PromptTemplate
    tokens: TokenCounter
    examples_as: Literal["turns", "block"] = "turns"

    def prompt(self, request: Request, examples: Sequence[Selected]) -> tuple[str, list[Selected]]:
        """The prompt, and the examples in it: those that fit beside the answer, in order.

        The least useful examples give way, and what was said before never does: an LLM refuses a
        conversation that is too long for it. An LLM that takes no examples gets none.

        Raises:
            InvalidRequestError: the LLM's chat template refuses the conversation.
        """
        kept = list(examples) if self.settings.takes_examples else []
        room = self.settings.context_length - request.sampling.max_tokens
        while True:
            try:
                text = self.template.render(self._turns(request, kept))
            except InvalidRequestError:
                if not kept:
                    raise
                # One of them is a conversation that the template refuses; the request may be fine.
                kept.clear()
                continue
            # A token is at least one byte, so short prompts need no counting.
            if not kept or len(text.encode("utf-8")) <= room or self.tokens.count(text) <= room:
                return text, kept
            kept.remove(min(kept, key=lambda e: e.utility))

    def sampling(self, asked: Sampling) -> Sampling:
        """With which the LLM is called: that of a request, with the LLM's stop words and, where the
        request leaves the defaults, its recommended values."""
        llm = self.settings
        if stop := (*self.template.stop, *llm.stop):
            asked = replace(asked, stop=(*asked.stop, *stop))
        sampled = (
            ("top_p", *(["top_k"] if llm.takes_top_k else ())) if asked.temperature > 0 else ()
        )
        for name in ("repetition_penalty", *sampled):
            if getattr(asked, name) != getattr(Sampling, name):
                continue
            recommended = replace(asked, **{name: getattr(llm, name)})
            if not self.client.lacks(recommended) or self.client.lacks(asked):
                asked = recommended
        return asked

    def _turns(self, request: Request, examples: Sequence[Selected]) -> list[Turn]:
        turns = list(request.turns)
        pairs = [(example.request, example.response) for example in examples]
        if pairs and self.examples_as == "block":
            asked = (i for i, turn in enumerate(turns) if turn.role == "user")
            last = max(asked, default=len(turns) - 1)
            turns[last] = replace(
                turns[last], text=f"{examples_block(pairs)}\n\n{turns[last].text}"
            )
            pairs = []
        return few_shot(turns, pairs, request.system_prompt)
