"""What the router asks of an LLM, whatever serves it."""

from __future__ import annotations

from typing import Protocol

from echolm.primitives import Completion, OnText, Sampling


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
