"""A request's way: retrieve, decide, generate, submit what can be learnt.

Nothing here knows Triton. Every part may fail; the answer then comes without it, says so in
``degraded``, and only when no LLM answers does the client get an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.reuse import ReuseChoice
from echolm.contracts import MAX_BATCH_SIZE
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.gathering import Gatherer
from echolm.learning.tokens import FeedbackTokens
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.tracker import ServingLoad
from echolm.primitives import (
    AUTO,
    STORED,
    Answer,
    Choice,
    Completion,
    Interaction,
    OnText,
    Request,
    Retrieved,
    Selected,
    Served,
)
from echolm.router.batcher import Batcher
from echolm.router.policy import Policy, decision_record, fallback_choice
from echolm.router.ports import (
    AnswerObserver,
    InteractionSink,
    NoMetrics,
    Observers,
    Retriever,
    RouterMetrics,
)
from echolm.router.solicitation import Solicitor
from echolm.router.stored import StoredAnswers, answer_key_of, stored_answer, stored_decision
from echolm.settings import Settings

logger = logging.getLogger("echolm")

_Decided = tuple[NDArray[np.float32], Choice]
"""The bandit's context x, FP32 [d], and the choice."""


@dataclass
class RouterService:
    """Answers requests. Belongs to one event loop.

    Attributes:
        endpoints: the LLMs by name.
        stored: draws what is answered from the store; None: nothing is.
        background: tasks that run on after an answer, each submitting an interaction.
    """

    settings: Settings
    endpoints: Mapping[str, LLMEndpoint]
    retriever: Retriever
    policy: Policy
    tokens: FeedbackTokens
    sink: InteractionSink
    load: ServingLoad
    metrics: RouterMetrics = field(default_factory=NoMetrics)
    observer: AnswerObserver = field(default_factory=Observers)
    stored: StoredAnswers | None = None
    clock: Callable[[], float] = time.perf_counter
    background: set[asyncio.Task[None]] = field(default_factory=set)
    solicitor: Solicitor = field(init=False)
    _decisions: Batcher[tuple[Request, Retrieved], _Decided | Exception] = field(init=False)

    def __post_init__(self) -> None:
        # Requests come back from retrieval in batches, so they are decided on in batches, too.
        self._decisions = Batcher(self._decide_together, MAX_BATCH_SIZE, max_running=1)
        routing = self.settings.routing
        self.solicitor = Solicitor(routing.solicit_share, routing.solicit_random)

    async def answer(self, request: Request, on_text: OnText | None = None) -> Answer:
        """Answer one request.

        Args:
            on_text: gets the text piece by piece, those of ``limits.stream_interval_ms`` together;
                None if only the whole text is wanted.

        Raises:
            InvalidRequestError: no LLM can take the request.
            UnavailableError: no LLM answered.
        """
        started = self.clock()
        notes: list[str] = []
        request_id = uuid.uuid4().hex
        retrieved = await self._retrieve(request, notes)
        reuse = self._choose_stored(request, retrieved)
        if reuse is not None and reuse.action == "give":
            return self._give_stored(request_id, request, retrieved, reuse, on_text, notes, started)
        checked = reuse is not None and reuse.action == "check"
        wanted = replace(request, llm=self.settings.strongest_llm.name) if checked else request
        x, choice = await self._decide(wanted, retrieved, notes)
        chosen = choice.arm
        interval_s = self.settings.limits.stream_interval_ms / 1_000
        with _gathering(on_text, interval_s) as on_piece:
            llm, used, completion = await self._generate(
                request_id, request, retrieved, chosen, on_piece, notes, started
            )
        if llm != chosen:
            choice = self._stand_in_choice(x, llm, choice.statistics)
        revision = self.endpoints[llm].settings.revision
        decision = decision_record(request_id, request, retrieved, x, choice, used, revision)
        arms = sum(p > 0.0 for p in choice.probabilities.values())
        if arms > 1:  # nobody is asked about an LLM of their own choice
            ask = self.solicitor.should_solicit(choice.rating_value, choice.propensity, arms)
            decision = replace(decision, solicited=ask.reason, solicit_probability=ask.probability)
        answer = Answer(
            **vars(completion),
            llm=llm,
            example_ids=decision.example_ids,
            predicted_quality=choice.quality,
            solicit_feedback=bool(decision.solicited),
            feedback_token=self.tokens.dump(decision),
            degraded="; ".join(notes),
        )
        self.metrics.answered(answer, chosen, self.clock() - started)
        self._submit(request, retrieved, answer)
        check = reuse.propensity if checked and reuse is not None else 0.0
        self.observer.served(Served(request, retrieved, x, choice, decision, answer.text, check))
        return answer

    def _choose_stored(self, request: Request, retrieved: Retrieved) -> ReuseChoice | None:
        if self.stored is None:
            return None
        try:
            chosen = self.stored.choose(request, retrieved)
        except Exception as error:  # whatever is wrong with what was learnt, an LLM can answer
            logger.error("no answer from the store", exc_info=error)
            self.metrics.degraded("reuse", "failed")
            return None
        if chosen is not None:
            self.metrics.reuse(chosen.action)
        return chosen

    def _give_stored(
        self,
        request_id: str,
        request: Request,
        retrieved: Retrieved,
        reuse: ReuseChoice,
        on_text: OnText | None,
        notes: list[str],
        started: float,
    ) -> Answer:
        """The answer from the store, as the only piece of a stream."""
        found = retrieved.reusable
        assert found is not None
        choice, decision = stored_decision(request_id, request.tenant, found, reuse)
        answer = stored_answer(found, decision, self.tokens.dump(decision), "; ".join(notes))
        if on_text is not None:
            self.metrics.took("first_token", self.clock() - started, STORED)
            on_text(answer.text)
        self.metrics.answered(answer, STORED, self.clock() - started)
        x = decision.context
        self.observer.served(Served(request, retrieved, x, choice, decision, answer.text))
        return answer

    async def _retrieve(self, request: Request, notes: list[str]) -> Retrieved:
        requested = None if request.llm == AUTO else self.endpoints[request.llm].settings
        if (
            requested is not None
            and not (requested.takes_examples and request.use_examples)
            and not self._may_store(request, requested.name)
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

    async def _decide(self, request: Request, retrieved: Retrieved, notes: list[str]) -> _Decided:
        try:
            if request.llm != AUTO:
                return self.policy.force(request, retrieved)
            started = self.clock()
            decision = await self._decisions((request, retrieved))
            self.metrics.took("decision", self.clock() - started)
            if isinstance(decision, Exception):
                raise decision
            return decision
        except Exception as error:  # whatever is wrong with the router's state, an LLM can answer
            logger.error("routing failed", exc_info=error)
            by_caller = request.llm != AUTO
            notes.append("routing failed" if by_caller else "routing failed: default LLM")
            self.metrics.degraded("routing", "failed")
            name = request.llm if by_caller else self.settings.default_llm.name
            return self.policy.empty_context(), fallback_choice(name)

    async def _decide_together(
        self, requests: Sequence[tuple[Request, Retrieved]]
    ) -> Sequence[_Decided | Exception]:
        """Decide for all at once; if that fails, for each alone, so that none fails for another."""
        try:
            return self.policy.decide(requests)
        except Exception as error:
            if len(requests) == 1:
                return [error]
        return [(await self._decide_together([request]))[0] for request in requests]

    def _stand_in_choice(self, x: NDArray[np.float32], llm: str, statistics: int) -> Choice:
        """The choice of the LLM that answered in place of the chosen one."""
        try:
            return self.policy.forced_choice(x, llm, statistics)
        except Exception as error:  # there is an answer, which must not be lost
            logger.error("routing failed", exc_info=error)
            return fallback_choice(llm)

    async def _generate(
        self,
        request_id: str,
        request: Request,
        retrieved: Retrieved,
        chosen: str,
        on_text: OnText | None,
        notes: list[str],
        started: float,
    ) -> tuple[str, Sequence[Selected], Completion]:
        """Let the chosen LLM answer, or another one if it fails.

        Args:
            notes: is told of each LLM that failed.
            started: when the request came, by ``clock``.

        Returns:
            Name of the LLM that answered, the examples in its prompt, and the answer.
        """
        refused: InvalidRequestError | None = None
        problem: Exception
        timeout_s = self.settings.limits.request_timeout_s
        sent = False

        def forward(piece: str) -> None:
            nonlocal sent
            if not sent:
                self.metrics.took("first_token", self.clock() - started, name)
            sent = True
            assert on_text is not None
            on_text(piece)

        on_piece = None if on_text is None else forward
        for attempt, name in enumerate(self._order(chosen)):
            endpoint = self.endpoints[name]
            prompt, used = endpoint.prompt(request, retrieved.examples)
            generation_started = self.clock()
            try:
                with self.load.serving(name):
                    answering = endpoint.client.generate(
                        f"{request_id}-{attempt}", prompt, request.sampling, on_piece
                    )
                    completion = await asyncio.wait_for(answering, timeout_s)
                self.metrics.took("generation", self.clock() - generation_started, name)
                return name, used, completion
            except InvalidRequestError as error:
                # Another LLM may have the context that this one lacks.
                refused = refused or error
                problem, reason, note = error, "refused", "refused the request"
            except asyncio.TimeoutError as error:
                problem, reason, note = error, "timeout", "unavailable"
            except UnavailableError as error:
                problem, reason, note = error, "unavailable", "unavailable"
            except Exception as error:  # a defect of one LLM's client leaves the others
                logger.error("LLM %s failed unexpectedly", name, exc_info=error)
                problem, reason, note = error, "failed", "failed"
            notes.append(f"{name} {note}")
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

    def _order(self, chosen: str) -> list[str]:
        """LLMs in the order in which they are tried: chosen, default, then strongest first."""
        by_cost = sorted(self.endpoints, key=lambda n: -self.endpoints[n].settings.cost)
        return list(dict.fromkeys([chosen, self.settings.default_llm.name, *by_cost]))

    def _may_store(self, request: Request, llm: str) -> bool:
        return (
            self.settings.examples.enabled
            and request.store
            and not request.sampling.stop  # one of them may have cut the answer short
            and llm in self.settings.example_sources
        )

    def _answer_key(self, request: Request, llm: str) -> str:
        """Under which the answer may be given again; only the strongest LLM's may."""
        strongest = self.settings.strongest_llm.name
        return answer_key_of(self.settings, request) if llm == strongest else ""

    def _submit(self, request: Request, retrieved: Retrieved, answer: Answer) -> None:
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
            answer_key=self._answer_key(request, answer.llm),
        )
        task = asyncio.create_task(self._submit_interaction(interaction))
        self.background.add(task)  # the loop keeps only weak references to tasks
        task.add_done_callback(self.background.discard)

    async def _submit_interaction(self, interaction: Interaction) -> None:
        try:
            await self.sink.submit(interaction)
        except EchoError as error:
            logger.warning("interaction not submitted: %s", error)
            self.metrics.degraded("example_manager", "unavailable")


@contextmanager
def _gathering(on_text: OnText | None, interval_s: float) -> Iterator[OnText | None]:
    """What takes the pieces of one answer; at the end, be it an error, the rest goes out.

    Only when the answer is cancelled, nobody wants the rest.
    """
    if on_text is None:
        yield None
        return
    pieces = Gatherer(on_text, "".join, interval_s, asyncio.get_running_loop().call_later)
    try:
        yield pieces
    except asyncio.CancelledError:
        pieces.drop()
        raise
    except Exception:
        pieces.flush()
        raise
    pieces.flush()
