"""The front door without Triton: it asks for plans, calls LLMs and reports in the same order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from echolm.errors import EchoError, UnavailableError
from echolm.primitives import (
    AUTO,
    STORED,
    Answer,
    Completion,
    Piece,
    Plan,
    Report,
    Request,
    Retrieved,
)
from echolm.router.service import RouterService

OnText = Callable[[str], None]


class Retriever(Protocol):
    """Finds examples for a request."""

    async def retrieve(self, request: Request) -> Retrieved:
        """The request's embedding and selected examples; an exception if that fails."""


@dataclass
class FrontDoor:
    """Answers requests by a router's plans."""

    service: RouterService
    retriever: Retriever

    async def answer(self, request: Request, on_text: OnText | None = None) -> Answer:
        """Answer one request.

        Args:
            on_text: gets the text piece by piece.

        Raises:
            InvalidRequestError: no LLM can take the request.
            UnavailableError: no LLM answered, or one has failed after a piece.
            asyncio.CancelledError: the caller has gone.
        """
        self.service.check(request)
        clock = self.service.clock
        started = clock()
        retrieved = await self._retrieve(request)
        plan = self.service.plan([(request, retrieved)])[0]
        if isinstance(plan, Exception):
            raise plan
        selection_s = clock() - started
        while True:
            call = _Call(plan, on_text, clock, started)
            try:
                completion = await self._generate(call)
            except asyncio.CancelledError:
                self.service.ended(_report("ended", plan, reason="cancelled"))
                raise
            except (EchoError, asyncio.TimeoutError) as error:
                if call.first_token_s >= 0.0:
                    self.service.ended(_report("ended", plan, reason="stream_broken"))
                    message = f"{plan.llm} failed after part of the answer was sent"
                    raise UnavailableError(message) from error
                timeout = isinstance(error, asyncio.TimeoutError)
                report = _report("failed", plan, reason="timeout" if timeout else str(error))
                plan = self.service.failed(
                    report, error if isinstance(error, EchoError) else UnavailableError("timeout")
                )
                continue
            ended = clock()
            self.service.answered(
                Report(
                    "answered",
                    plan.request_id,
                    plan.llm,
                    completion,
                    selection_s,
                    ended - call.began,
                    call.first_token_s,
                    ended - started,
                )
            )
            return Answer(
                **vars(completion),
                llm=plan.llm,
                example_ids=plan.example_ids,
                predicted_quality=plan.predicted_quality,
                solicit_feedback=plan.solicit_feedback,
                feedback_token=plan.feedback_token,
                degraded=plan.degraded,
            )

    async def _retrieve(self, request: Request) -> Retrieved:
        if request.llm != AUTO and not request.use_examples and not request.store:
            return Retrieved()  # nothing that is found would be used
        try:
            return await self.retriever.retrieve(request)
        except UnavailableError:
            return Retrieved(degraded="retrieval unavailable")

    async def _generate(self, call: _Call) -> Completion:
        plan = call.plan
        if plan.llm == STORED:
            if call.on_text is not None:
                call.forward(Piece(plan.text))
            return Completion(plan.text, "stop", 0, 0)
        client = self.service.endpoints[plan.llm].client
        forward = None if call.on_text is None else call.forward
        answering = client.generate(plan.request_id, plan.prompt, plan.sampling, forward)
        return await asyncio.wait_for(answering, self.service.settings.limits.request_timeout_s)


class _Call:
    """One LLM's answer to one request on its way."""

    def __init__(
        self, plan: Plan, on_text: OnText | None, clock: Callable[[], float], started: float
    ) -> None:
        self.plan, self.on_text = plan, on_text
        self.first_token_s = -1.0
        self._clock, self._started = clock, started
        self.began = clock()

    def forward(self, piece: Piece) -> None:
        if self.first_token_s < 0.0:
            self.first_token_s = self._clock() - self._started
        assert self.on_text is not None
        self.on_text(piece.text)


def _report(kind: Literal["failed", "ended"], plan: Plan, reason: str) -> Report:
    return Report(kind, plan.request_id, plan.llm, Completion("", ""), reason=reason)
