"""Models behind the gateway that answer as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from echolm.errors import EchoError
from echolm.gateway.backend import Final, Inputs, Piece


class FakeBackend:
    """Gives the same answer to all.

    Attributes:
        final: the answer; streamed, its text comes word by word, and before it its calls.
        asked: the inputs of all requests so far.
        fails: raised instead of an answer; while streaming, after ``fails_after`` pieces.
        hangs: whether answers never come, or never end.
        began, cancelled: an answer was begun; it was given up.
    """

    def __init__(self, final: Final | None = None) -> None:
        self.final = final or Final(
            "Use the command find.",
            llm="small_llm",
            example_ids=(7, 8),
            predicted_quality=0.75,
            solicit_feedback=True,
            feedback_token="signed",
            finish_reason="stop",
            num_input_tokens=11,
            num_output_tokens=4,
        )
        self.asked: list[Inputs] = []
        self.rated: list[Inputs] = []
        self.fails: Exception | None = None
        self.fails_after = 0
        self.hangs = False
        self.is_up = True
        self.began, self.cancelled = asyncio.Event(), asyncio.Event()

    async def answer(self, inputs: Inputs) -> Final:
        self.asked.append(inputs)
        if self.fails is not None:
            raise self.fails
        await self._maybe_hang()
        return self.final

    async def stream(self, inputs: Inputs) -> AsyncGenerator[Piece | Final, None]:
        self.asked.append(inputs)
        if calls := self.final.tool_calls:
            deltas = [{"index": k, **call} for k, call in enumerate(orjson.loads(calls))]
            yield Piece("", tool_calls=orjson.dumps(deltas))
        words = [f"{word} " for word in self.final.text.split(" ")]
        words[-1] = words[-1][:-1]
        for number, word in enumerate(words):
            if self.fails is not None and number == self.fails_after:
                raise self.fails
            await asyncio.sleep(0)  # as what waits for a model does
            yield Piece(word, self.final.logprobs)
        await self._maybe_hang()
        yield replace(self.final, text="", logprobs=b"", tool_calls=b"")

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        return [np.array([len(text), 0.1, -1], "<f4").tobytes() for text in texts]

    async def rate(self, inputs: Inputs) -> None:
        if isinstance(self.fails, EchoError):
            raise self.fails
        self.rated.append(inputs)

    async def is_ready(self) -> bool:
        return self.is_up

    async def close(self) -> None:
        pass

    async def _maybe_hang(self) -> None:
        self.began.set()
        if self.hangs:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.cancelled.set()


def chat(text: str = "How do I find files?", **fields: Any) -> dict[str, Any]:
    """The body of a chat with one message."""
    messages = [{"role": "user", "content": text}]
    return {"model": "echolm", "messages": messages, **fields}
