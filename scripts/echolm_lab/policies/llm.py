"""A fixed LLM, with or without examples, or EchoLM's own choice."""

from __future__ import annotations

import time

from echolm_client import AsyncClient

from echolm_lab.policies.base import DEFAULT_ASKING, MAX_TOKENS, Asking, Reply
from echolm_lab.tasks import Item


class LLMPolicy:
    """A fixed LLM, or EchoLM's router (``llm="auto"``).

    Args:
        cache_control: as EchoLM's input of that name.
    """

    def __init__(
        self,
        name: str,
        client: AsyncClient,
        llm: str = "auto",
        cache_control: str = "default",
        asking: Asking = DEFAULT_ASKING,
    ) -> None:
        self.name = name
        self._client = client
        self._llm = llm
        self._cache_control = cache_control
        self._asking = asking

    async def send(self, item: Item) -> Reply:
        answer = await self._client.generate(
            item.text,
            llm=self._llm,
            cache_control=self._cache_control,
            system_prompt=self._asking.system_prompt,
            max_tokens=self._asking.max_tokens,
        )
        return Reply(
            text=answer.text,
            llm=answer.llm,
            num_examples=len(answer.example_ids),
            feedback_token=answer.feedback_token,
            solicit_feedback=answer.solicit_feedback,
            degraded=answer.degraded,
        )


class StreamedLLM:
    """A fixed LLM whose answers are streamed, so that the time to the first piece is known.

    Attributes:
        first_piece_s: of each answer, seconds from its request to its first piece.
    """

    def __init__(self, name: str, client: AsyncClient, llm: str, cache_control: str) -> None:
        self.name = name
        self.first_piece_s: list[float] = []
        self._client = client
        self._llm = llm
        self._cache_control = cache_control

    async def send(self, item: Item) -> Reply:
        started = time.perf_counter()
        first = 0.0
        async with self._client.stream(
            item.text, llm=self._llm, cache_control=self._cache_control, max_tokens=MAX_TOKENS
        ) as stream:
            async for _ in stream:
                first = first or time.perf_counter() - started
        self.first_piece_s.append(first)
        answer = stream.answer
        return Reply(answer.text, answer.llm, len(answer.example_ids), answer.feedback_token)
