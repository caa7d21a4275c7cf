"""What the gateway asks of the models behind it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Inputs = Mapping[str, Any]
"""Inputs of ``echolm`` by name: text, numbers, truth values, or a list of texts."""


@dataclass(frozen=True)
class Piece:
    """A part of a streamed answer.

    Attributes:
        logprobs: JSON array as in OpenAI's ``logprobs.content``; empty: none.
        tool_calls: JSON array as in OpenAI's ``delta.tool_calls``; empty: none.
    """

    text: str
    logprobs: bytes = b""
    tool_calls: bytes = b""


@dataclass(frozen=True)
class Final:
    """An answer, or the end of a streamed one; see :class:`echolm.primitives.Answer`.

    Attributes:
        text: the whole text; of a stream what no piece had.
        tool_calls: JSON array as in OpenAI's API; empty: none, or of a stream, whose pieces had
            them.
        logprobs: see :class:`Piece`.
    """

    text: str
    llm: str = ""
    example_ids: tuple[int, ...] = ()
    predicted_quality: float = 0.0
    solicit_feedback: bool = False
    feedback_token: str = ""
    degraded: str = ""
    finish_reason: str = ""
    num_input_tokens: int = -1
    num_output_tokens: int = -1
    tool_calls: bytes = b""
    logprobs: bytes = b""


class Backend(Protocol):
    """EchoLM's models. All methods raise EchoError."""

    async def answer(self, inputs: Inputs) -> Final:
        """One answer; a cancellation ends its generation."""

    def stream(self, inputs: Inputs) -> AsyncGenerator[Piece | Final, None]:
        """One answer in pieces, a :class:`Final` last; closing it ends the generation."""

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        """The texts' embeddings, FP32 little-endian."""

    async def rate(self, inputs: Inputs) -> None:
        """Give the inputs of ``feedback``."""

    async def is_ready(self) -> bool:
        """Whether requests can be answered."""

    async def close(self) -> None:
        """End all calls."""
