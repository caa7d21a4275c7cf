"""The router's part in a request: decide which LLM answers, and learn from what it said.

The front door (``echolm.front_door``) asks for a plan, calls the LLM that it names, and reports
what has become of it; if the LLM fails, it is given another plan. Nothing here knows Triton, and
nothing waits. Every part may fail; the answer then comes without it, says so in ``degraded``, and
only when no LLM answers does the client get an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.reuse import ReuseChoice
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.learning.tokens import FeedbackTokens
from echolm.llm.endpoint import LLMEndpoint
from echolm.llm.optional_inputs import optional_inputs, refusal
from echolm.load.tracker import ServingLoad
from echolm.primitives import (
    AUTO,
    STORED,
    Answer,
    Choice,
    Decision,
    Interaction,
    Plan,
    Report,
    Request,
    Retrieved,
    Sampling,
    Served,
)
from echolm.router.conversations import WarmConversations
from echolm.router.policy import Policy, decision_record, fallback_choice
from echolm.router.ports import (
    AnswerObserver,
    InteractionSink,
    NoMetrics,
    Observers,
    RouterMetrics,
)
from echolm.router.solicitation import Solicitor
from echolm.router.stored import StoredAnswers, answer_key_of, stored_decision
from echolm.router.validation import may_store
from echolm.settings import Settings

logger = logging.getLogger("echolm")

_Decided = tuple[NDArray[np.float32], Choice]
"""The bandit's context x, FP32 [d], and the choice."""


@dataclass
class _Open:
    """A request that has a plan, of which no final report has come.

    Attributes:
        x: the bandit's context, FP32 [d].
        choice, decision, plan: the present ones, which change when an LLM fails.
        chosen: name of the LLM that the router chose first.
        able: names of the LLMs that can take the request; None: all.
        untried: names of the LLMs that come next.
        notes: what has failed.
        check: see ``Served``.
        refused: the error of the first LLM that has called the request invalid.
        refusal: that error, where no LLM was left and there is no plan.
        since: when it was planned, in seconds of the clock.
    """

    request: Request
    retrieved: Retrieved
    x: NDArray[np.float32]
    choice: Choice
    chosen: str
    untried: list[str]
    notes: list[str]
    check: float
    since: float
    able: Collection[str] | None
    decision: Decision = field(init=False)
    plan: Plan = field(init=False)
    refused: InvalidRequestError | None = None
    refusal: EchoError | None = None


@dataclass
class RouterService:
    """Plans answers, and takes note of them. Belongs to one event loop.

    Attributes:
        endpoints: the LLMs by name.
        stored: draws what is answered from the store; None: nothing is.
        conversations: which LLM has a conversation in its prefix cache.
        background: tasks that run on after an answer, each submitting an interaction.
    """

    settings: Settings
    endpoints: Mapping[str, LLMEndpoint]
    policy: Policy
    tokens: FeedbackTokens
    sink: InteractionSink
    load: ServingLoad
    metrics: RouterMetrics = field(default_factory=NoMetrics)
    observer: AnswerObserver = field(default_factory=Observers)
    stored: StoredAnswers | None = None
    conversations: WarmConversations = field(default_factory=lambda: WarmConversations(0.0))
    clock: Callable[[], float] = time.perf_counter
    background: set[asyncio.Task[None]] = field(default_factory=set)
    solicitor: Solicitor = field(init=False)
    _open: dict[str, _Open] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        routing = self.settings.routing
        self.solicitor = Solicitor(routing.solicit_share, routing.solicit_random)
        costs = {name: endpoint.settings.cost for name, endpoint in self.endpoints.items()}
        self._strongest_first = sorted(costs, key=lambda name: -costs[name])

    @property
    def in_flight(self) -> int:
        """Plans of which no final report has come."""
        return len(self._open)

    def check(self, request: Request) -> None:
        """Refuse a request that asks for what no LLM that may answer it can take.

        Raises:
            InvalidRequestError: names the input.
        """
        asked = optional_inputs(request.sampling)
        if not asked:
            return
        names = list(self.endpoints) if request.llm == AUTO else [request.llm]
        lacks = [self.endpoints[name].client.lacks(request.sampling) for name in names]
        if all(lacks):
            # What none of them takes explains it best.
            lacking = [name for name in asked if all(name in one for one in lacks)] or lacks[0]
            whose = "no LLM here can" if request.llm == AUTO else f"{request.llm} cannot"
            raise refusal(request.sampling, lacking, whose)

    def _able(self, request: Request) -> list[str] | None:
        if not optional_inputs(request.sampling):
            return None
        lacking = {n for n, e in self.endpoints.items() if e.client.lacks(request.sampling)}
        return [name for name in self.endpoints if name not in lacking] if lacking else None

    def plan(self, requests: Sequence[tuple[Request, Retrieved]]) -> list[Plan | EchoError]:
        """What is to be done for each of several requests, which were checked. Never fails.

        An error in place of a plan refuses a conversation that no LLM's chat template takes. An LLM
        that a plan names counts as serving the request until the report comes.
        """
        opened = [self._begin(request, retrieved) for request, retrieved in requests]
        drawn = [o for o in opened if o.request.llm == AUTO and not o.chosen]
        if drawn:
            started = self.clock()
            decided = self._decide_together(drawn)
            seconds = self.clock() - started
            for one, decision in zip(drawn, decided, strict=True):
                self.metrics.took("decision", seconds)
                self._take(one, decision)
        for one in opened:
            if not one.chosen:
                self._take(one, self._force(one))
        return [one.refusal or one.plan for one in opened]

    def _begin(self, request: Request, retrieved: Retrieved) -> _Open:
        notes = []
        if retrieved.degraded:
            notes.append(f"no examples: {retrieved.degraded}")
            self.metrics.degraded("retrieval", retrieved.degraded.replace(" ", "_"))
        nothing = self.policy.empty_context(), fallback_choice("")
        able = self._able(request)
        one = _Open(request, retrieved, *nothing, "", [], notes, 0.0, self.clock(), able)
        reuse = self._choose_stored(request, retrieved)
        if reuse is not None and reuse.action == "give":
            self._give_stored(one, reuse)
        elif reuse is not None and reuse.action == "check":
            one.request = replace(request, llm=self.settings.strongest_llm.name)
            one.check = reuse.propensity
        return one

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

    def _give_stored(self, one: _Open, reuse: ReuseChoice) -> None:
        """Plan the answer from the store."""
        found = one.retrieved.reusable
        assert found is not None
        id, one.chosen = uuid.uuid4().hex, STORED
        one.choice, one.decision = stored_decision(id, one.request.tenant, found, reuse)
        one.x = one.decision.context
        self._set_plan(one, found.response, "", one.request.sampling)

    def _force(self, one: _Open) -> _Decided | Exception:
        try:
            return self.policy.force(one.request, one.retrieved)
        except Exception as error:
            return error

    def _decide_together(self, opened: Sequence[_Open]) -> Sequence[_Decided | Exception]:
        """Decide for all at once; if that fails, for each alone, so that none fails for another."""
        try:
            requests = [(one.request, one.retrieved) for one in opened]
            return self.policy.decide(requests, [one.able for one in opened])
        except Exception as error:
            if len(opened) == 1:
                return [error]
        return [self._decide_together([one])[0] for one in opened]

    def _take(self, one: _Open, decided: _Decided | Exception) -> None:
        """Plan the call of the chosen LLM."""
        if isinstance(decided, Exception):
            # Whatever is wrong with the router's state, an LLM can answer.
            logger.error("routing failed", exc_info=decided)
            by_caller = one.request.llm != AUTO
            one.notes.append("routing failed" if by_caller else "routing failed: default LLM")
            self.metrics.degraded("routing", "failed")
            order = [one.request.llm] if by_caller else self._stand_ins(one)
            one.choice = fallback_choice(order[0])
        else:
            one.x, one.choice = decided
        one.chosen = one.choice.arm
        one.untried = list(dict.fromkeys([one.chosen, *self._stand_ins(one)]))[1:]
        try:
            self._plan_call_of_any(one, uuid.uuid4().hex)
        except InvalidRequestError as error:
            one.refusal = error
        except Exception as error:  # a defect costs this request and no other of the batch
            logger.error("planning failed", exc_info=error)
            self.metrics.failed("internal")
            one.refusal = UnavailableError("router: the request could not be planned")

    def _plan_call_of_any(self, one: _Open, request_id: str) -> None:
        """Plan the call of the chosen LLM, or of the next one whose chat template takes the
        conversation; raises as :meth:`failed` does if none is left."""
        while True:
            try:
                return self._plan_call(one, request_id)
            except InvalidRequestError as error:
                self._note_failure(one, one.choice.arm, "refused", error)
                self._choose_next(one)

    def _stand_ins(self, one: _Open) -> list[str]:
        """The LLMs that are asked where nothing was drawn, or the one that was has failed."""
        order = [self.settings.default_llm.name, *self._strongest_first]
        return order if one.able is None else [name for name in order if name in one.able]

    def _plan_call(self, one: _Open, request_id: str) -> None:
        endpoint = self.endpoints[one.choice.arm]
        prompt, used = endpoint.prompt(one.request, one.retrieved.examples)
        choice, revision = one.choice, endpoint.settings.revision
        decision = decision_record(
            request_id, one.request, one.retrieved, one.x, choice, used, revision
        )
        arms = sum(p > 0.0 for p in choice.probabilities.values())
        if arms > 1:  # nobody is asked about an LLM of their own choice
            ask = self.solicitor.should_solicit(choice.rating_value, choice.propensity, arms)
            decision = replace(decision, solicited=ask.reason, solicit_probability=ask.probability)
        one.decision = decision
        self._set_plan(one, "", prompt, endpoint.sampling(one.request.sampling))
        self.load.change(decision.llm, +1)

    def _set_plan(self, one: _Open, text: str, prompt: str, sampling: Sampling) -> None:
        decision = one.decision
        one.plan = Plan(
            decision.request_id,
            decision.llm,
            prompt,
            sampling,
            one.request.stream,
            decision.example_ids,
            decision.quality,
            bool(decision.solicited),
            self.tokens.dump(decision),
            "; ".join(one.notes),
            text,
        )
        self._open[decision.request_id] = one

    def failed(self, report: Report, error: EchoError) -> Plan:
        """Another plan for a request whose LLM has failed.

        Args:
            error: what it said.

        Raises:
            InvalidRequestError: an LLM refuses the request, and no other is left.
            UnavailableError: no LLM is left.
        """
        one = self._close(report.request_id)
        if one is None:
            raise UnavailableError("router: restarted since the request was planned")
        reason = "timeout" if report.reason == "timeout" else "unavailable"
        if isinstance(error, InvalidRequestError):
            reason = "refused"
        self._note_failure(one, one.plan.llm, reason, error)
        self._choose_next(one)
        self._plan_call_of_any(one, report.request_id)
        return one.plan

    def _note_failure(self, one: _Open, llm: str, reason: str, error: EchoError) -> None:
        if isinstance(error, InvalidRequestError):
            # Another LLM may have the context that this one lacks.
            one.refused = one.refused or error
        one.notes.append(f"{llm} {'refused the request' if reason == 'refused' else 'unavailable'}")
        logger.warning("LLM %s failed: %s", llm, error)
        self.metrics.degraded(llm, reason)

    def _choose_next(self, one: _Open) -> None:
        """Take the next LLM for one that has failed; raises as :meth:`failed` does."""
        if not one.untried:
            if one.refused is not None:
                self.metrics.failed("invalid")
                raise one.refused
            self.metrics.failed("no_llm")
            raise UnavailableError(f"no LLM answered: {'; '.join(one.notes)}")
        one.choice = self._stand_in_choice(one.x, one.untried.pop(0), one.choice.statistics)

    def _stand_in_choice(self, x: NDArray[np.float32], llm: str, statistics: int) -> Choice:
        """The choice of the LLM that is asked in place of the chosen one."""
        try:
            return self.policy.forced_choice(x, llm, statistics)
        except Exception as error:  # whatever is wrong with the router's state, an LLM can answer
            logger.error("routing failed", exc_info=error)
            return fallback_choice(llm)

    def answered(self, report: Report) -> None:
        """Take note of an answer that the client has got; nothing if its plan is not known."""
        one = self._close(report.request_id)
        if one is None:
            logger.warning("nothing is learnt of an answer that was planned before a restart")
            return
        plan = one.plan
        answer = Answer(
            **vars(report.completion),
            llm=plan.llm,
            example_ids=plan.example_ids,
            predicted_quality=plan.predicted_quality,
            solicit_feedback=plan.solicit_feedback,
            feedback_token=plan.feedback_token,
            degraded=plan.degraded,
        )
        took = self.metrics.took
        took("selection", report.selection_s)
        if report.first_token_s >= 0.0:
            took("first_token", report.first_token_s, plan.llm)
        if plan.llm != STORED:
            took("generation", report.generation_s, plan.llm)
        self.metrics.answered(answer, one.chosen, report.total_s)
        if warm := self.conversations.llm_of(one.request):
            self.metrics.conversation("stayed" if plan.llm == warm else "moved")
        self.conversations.answered(one.request, plan.llm, answer.text)
        self._submit(one, answer)
        self.observer.served(
            Served(
                one.request, one.retrieved, one.x, one.choice, one.decision, answer.text, one.check
            )
        )

    def ended(self, report: Report) -> None:
        """Take note of a request that has got no answer."""
        self._close(report.request_id)
        if report.reason != "late":  # that request has another plan
            self.metrics.failed(report.reason)

    def _close(self, request_id: str) -> _Open | None:
        one = self._open.pop(request_id, None)
        if one is not None and one.plan.llm != STORED:
            self.load.change(one.plan.llm, -1)
        return one

    def forget(self, older_than_s: float) -> None:
        """Close plans so old that their reports were lost; the load shall not keep them."""
        before = self.clock() - older_than_s
        for request_id in [i for i, one in self._open.items() if one.since < before]:
            self._close(request_id)

    def _answer_key(self, request: Request, llm: str) -> str:
        """Under which the answer may be given again; only the strongest LLM's may."""
        strongest = self.settings.strongest_llm.name
        return answer_key_of(self.settings, request) if llm == strongest else ""

    def _submit(self, one: _Open, answer: Answer) -> None:
        request, retrieved = one.request, one.retrieved
        if retrieved.embedding is None or not may_store(self.settings, request, answer.llm):
            return
        interaction = Interaction(
            request=request.transcript,
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
