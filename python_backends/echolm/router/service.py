"""A request's way: retrieve, decide, generate, hand over what can be learnt.

Nothing here knows Triton. Every part may fail; the answer then comes without it, says so in
``degraded``, and only when no LLM answers does the client get an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from echolm.contracts import MAX_BATCH_SIZE
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.learning.tokens import FeedbackTokens
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.tracker import ServingLoad
from echolm.primitives import (
    AUTO,
    Answer,
    Choice,
    Completion,
    Decision,
    Interaction,
    OnText,
    Request,
    Retrieved,
    Selected,
    Served,
)
from echolm.retrieval.record import SelectionRecord
from echolm.router.batcher import Batcher
from echolm.router.policy import Policy
from echolm.router.solicitation import Solicitor
from echolm.settings import Settings

logger = logging.getLogger("echolm")


class Retriever(Protocol):
    """Finds examples for a request."""

    async def retrieve(self, request: Request) -> Retrieved:
        """Embedding and chosen examples; UnavailableError if that fails."""
        ...


class InteractionSink(Protocol):
    """Takes interactions that may become examples."""

    async def offer(self, interaction: Interaction) -> None:
        """Hand one over; failures are the sink's to count."""
        ...


class AnswerObserver(Protocol):
    """Sees every answer that was given."""

    def served(self, served: Served) -> None:
        """Take note of one; returns at once and never raises."""
        ...


class NoObserver:
    """Sees nothing."""

    def served(self, served: Served) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Several as one."""

    all: Sequence[AnswerObserver]

    def served(self, served: Served) -> None:
        for one in self.all:
            one.served(served)


Stage = Literal["retrieval", "decision", "generation", "first_token"]
"""What of a request's time is measured; ``first_token`` from its beginning, of streams only."""


class RouterMetrics(Protocol):
    """Counts what the router does."""

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None: ...

    def took(self, stage: Stage, seconds: float, llm: str = "") -> None:
        """
        Args:
            llm: which one, for ``generation`` and ``first_token``.
        """
        ...

    def degraded(self, part: str, reason: str) -> None: ...

    def failed(self, reason: str) -> None: ...


class NoMetrics:
    """Counts nothing."""

    def answered(self, answer: Answer, chosen: str, seconds: float) -> None: ...

    def took(self, stage: Stage, seconds: float, llm: str = "") -> None: ...

    def degraded(self, part: str, reason: str) -> None: ...

    def failed(self, reason: str) -> None: ...


_Decided = tuple[NDArray[np.float32], Choice]


def _selection(request: Request, retrieved: Retrieved, used: Sequence[Selected]) -> str:
    """What a rating needs to know of the examples that came into the prompt."""
    if not retrieved.selection:
        return ""
    try:
        record = SelectionRecord.load(retrieved.selection).of_used({e.id for e in used})
    except ValueError as error:  # there is an answer, which must not be lost
        logger.error("nothing can be learnt of the examples: %s", error)
        return ""
    # What an LLM of the caller's choice makes of a selection is not what the router would.
    return (record if request.llm == AUTO else replace(record, draw=None)).dump()


def decision_record(
    request_id: str,
    request: Request,
    retrieved: Retrieved,
    x: NDArray[np.float32],
    choice: Choice,
    used: Sequence[Selected],
    revision: str,
) -> Decision:
    """What a rating of an answer teaches about.

    Args:
        x: the bandit's context.
        choice: of the LLM that gave the answer.
        used: the examples in its prompt.
        revision: of that LLM.
    """
    return Decision(
        request_id,
        request.tenant,
        choice.arm,
        x,
        choice.propensity,
        choice.quality,
        tuple(e.id for e in used),
        _selection(request, retrieved, used),
        revision,
    )


def blind(llm: str) -> Choice:
    """The decision record of an LLM that was taken without a working router."""
    return Choice(llm, 1.0, {llm: 1.0}, quality=0.0)


@dataclass
class RouterService:
    """Answers requests.

    Attributes:
        observer: is shown every answer.
        background: tasks that run on after an answer (handing over interactions).
        solicitor: says for which answers a rating is asked.
    """

    settings: Settings
    targets: Mapping[str, LLMEndpoint]
    retriever: Retriever
    policy: Policy
    tokens: FeedbackTokens
    sink: InteractionSink
    load: ServingLoad
    metrics: RouterMetrics = field(default_factory=NoMetrics)
    observer: AnswerObserver = field(default_factory=NoObserver)
    clock: Callable[[], float] = time.perf_counter
    background: set[asyncio.Task[None]] = field(default_factory=set)
    solicitor: Solicitor = field(init=False)
    _decisions: Batcher[tuple[Request, Retrieved], _Decided | Exception] = field(init=False)

    def __post_init__(self) -> None:
        # Requests come back from retrieval in batches, and are decided on in such.
        self._decisions = Batcher(self._decide_together, MAX_BATCH_SIZE, max_running=1)
        self.solicitor = Solicitor(self.settings.routing.solicit_share)

    async def answer(self, request: Request, on_text: OnText | None = None) -> Answer:
        """Answer one request.

        Args:
            on_text: gets the text piece by piece; None if only the whole is wanted.

        Raises:
            InvalidRequestError: no LLM can take the request.
            UnavailableError: no LLM answered.
        """
        started = self.clock()
        notes: list[str] = []
        request_id = uuid.uuid4().hex
        retrieved = await self._retrieve(request, notes)
        x, choice = await self._decide(request, retrieved, notes)
        chosen = choice.arm
        llm, used, completion = await self._generate(
            request_id, request, retrieved, chosen, on_text, notes, started
        )
        if llm != chosen:
            choice = self._replaced(x, llm)
        solicited = self.solicitor.asks(choice.rating_value)
        revision = self.targets[llm].settings.revision
        decision = decision_record(request_id, request, retrieved, x, choice, used, revision)
        answer = Answer(
            text=completion.text,
            llm=llm,
            example_ids=decision.example_ids,
            predicted_quality=choice.quality,
            solicit_feedback=solicited,
            feedback_token=self.tokens.dump(decision),
            degraded="; ".join(notes),
            finish_reason=completion.finish_reason,
            num_input_tokens=completion.num_input_tokens,
            num_output_tokens=completion.num_output_tokens,
        )
        self.metrics.answered(answer, chosen, self.clock() - started)
        self._offer(request, retrieved, answer)
        self.observer.served(
            Served(request, retrieved, x, choice, decision, completion.text, solicited)
        )
        return answer

    async def _retrieve(self, request: Request, notes: list[str]) -> Retrieved:
        forced = None if request.llm == AUTO else self.targets[request.llm].settings
        if (
            forced is not None
            and not (forced.takes_examples and request.use_examples)
            and not self._may_store(request, forced.name)
        ):
            return Retrieved()  # nothing that retrieval finds would be used
        started = self.clock()
        try:
            retrieved = await self.retriever.retrieve(request)
        except EchoError as error:
            logger.warning("retrieval failed: %s", error)
            retrieved = Retrieved(degraded="retrieval unavailable")
        except Exception as error:  # whatever is wrong with it, an LLM can answer
            logger.error("retrieval failed", exc_info=error)
            retrieved = Retrieved(degraded="retrieval failed")
        self.metrics.took("retrieval", self.clock() - started)
        if retrieved.degraded:
            notes.append(f"no examples: {retrieved.degraded}")
            self.metrics.degraded("retrieval", retrieved.degraded.replace(" ", "_"))
        return retrieved

    async def _decide(
        self, request: Request, retrieved: Retrieved, notes: list[str]
    ) -> tuple[NDArray[np.float32], Choice]:
        try:
            if request.llm != AUTO:
                x = self.policy.context(request, retrieved)
                return x, self.policy.forced(x, request.llm)
            started = self.clock()
            decision = await self._decisions((request, retrieved))
            self.metrics.took("decision", self.clock() - started)
            if isinstance(decision, Exception):
                raise decision
            return decision
        except Exception as error:  # whatever is wrong with the router's state, an LLM can answer
            logger.error("routing failed", exc_info=error)
            forced = request.llm != AUTO
            notes.append("routing failed" if forced else "routing failed: default LLM")
            self.metrics.degraded("routing", "failed")
            name = request.llm if forced else self.settings.default_llm.name
            return self.policy.unknown(), blind(name)

    async def _decide_together(
        self, asked: Sequence[tuple[Request, Retrieved]]
    ) -> Sequence[_Decided | Exception]:
        """One draw for all; where that fails, each by itself, so that none fails for another."""
        try:
            return self.policy.decide(asked)
        except Exception as error:
            if len(asked) == 1:
                return [error]
        return [(await self._decide_together([one]))[0] for one in asked]

    def _replaced(self, x: NDArray[np.float32], llm: str) -> Choice:
        try:
            return self.policy.forced(x, llm)
        except Exception as error:  # there is an answer, which must not be lost
            logger.error("routing failed", exc_info=error)
            return blind(llm)

    async def _generate(
        self,
        request_id: str,
        request: Request,
        retrieved: Retrieved,
        first: str,
        on_text: OnText | None,
        notes: list[str],
        started: float,
    ) -> tuple[str, Sequence[Selected], Completion]:
        refused: InvalidRequestError | None = None
        problem: Exception
        sent = False
        name = first

        def forward(piece: str) -> None:
            nonlocal sent
            if not sent:
                self.metrics.took("first_token", self.clock() - started, name)
            sent = True
            assert on_text is not None
            on_text(piece)

        for attempt, name in enumerate(self._order(first)):
            target = self.targets[name]
            offered = retrieved.examples if target.settings.takes_examples else ()
            prompt, used = target.prompt(request, offered)
            asked = self.clock()
            try:
                with self.load.serving(name):
                    completion = await asyncio.wait_for(
                        target.client.generate(
                            f"{request_id}-{attempt}",
                            prompt,
                            request.sampling,
                            None if on_text is None else forward,
                        ),
                        self.settings.limits.request_timeout_s,
                    )
                self.metrics.took("generation", self.clock() - asked, name)
                return name, used, completion
            except InvalidRequestError as error:
                # Another LLM may have the context that this one lacks.
                refused = refused or error
                notes.append(f"{name} refused the request")
                reason, problem = "refused", error
            except (UnavailableError, asyncio.TimeoutError) as error:
                notes.append(f"{name} unavailable")
                timeout = isinstance(error, asyncio.TimeoutError)
                reason, problem = "timeout" if timeout else "unavailable", error
            except Exception as error:  # a defect of one LLM's client leaves the others
                logger.error("LLM %s failed unexpectedly", name, exc_info=error)
                notes.append(f"{name} failed")
                reason, problem = "failed", error
            if sent:
                # Another LLM's answer cannot continue what the client has already read.
                self.metrics.failed("stream_broken")
                raise UnavailableError(f"{name} failed after part of the answer was sent")
            logger.warning("LLM %s failed: %s", name, problem)
            self.metrics.degraded(name, reason)
        if refused is not None:
            self.metrics.failed("invalid")
            raise refused
        self.metrics.failed("no_llm")
        raise UnavailableError(f"no LLM answered: {'; '.join(notes)}")

    def _order(self, first: str) -> list[str]:
        """LLMs in the order in which they are tried: chosen, default, then the strongest."""
        by_cost = sorted(self.targets, key=lambda n: -self.targets[n].settings.cost)
        return list(dict.fromkeys([first, self.settings.default_llm.name, *by_cost]))

    def _may_store(self, request: Request, llm: str) -> bool:
        return (
            self.settings.examples.enabled
            and request.store
            # A stop word of the caller's may have cut the answer short.
            and not request.sampling.stop
            and llm in self.settings.example_sources
        )

    def _offer(self, request: Request, retrieved: Retrieved, answer: Answer) -> None:
        if retrieved.embedding is None or not self._may_store(request, answer.llm):
            return
        interaction = Interaction(
            request=request.text,
            response=answer.text,
            embedding=retrieved.embedding,
            tenant=request.tenant,
            system_prompt=request.system_prompt,
            llm=answer.llm,
            finish_reason=answer.finish_reason,
            quality=answer.predicted_quality,
            help_probability=retrieved.help_probability,
        )
        task = asyncio.get_running_loop().create_task(self._hand_over(interaction))
        # The loop keeps only weak references to tasks.
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def _hand_over(self, interaction: Interaction) -> None:
        try:
            await self.sink.offer(interaction)
        except EchoError as error:
            logger.warning("interaction not handed over: %s", error)
            self.metrics.degraded("example_manager", "unavailable")
