"""Which answers are judged, what each is compared with, and what the router learns from it.

A judgement compares two LLMs on one request: the one that answered and another, which is asked
beside it, off the caller's path, for one of these reasons:

- ``random``, ``solicited``: a sampled share of the answers, some at random and some where the
  router is unsure. If a *candidate* answered, the *reference* LLM (the strongest) is asked; if the
  reference LLM answered, a candidate drawn by the router's confidence is asked, with the examples
  that were retrieved for the request (paper, §4.2: the top arm and one sampled by confidence). So
  what is learnt of an LLM does not depend on where the router sends it, and an LLM that gets no
  requests any more can still win them back.
- ``shadow``: an LLM lacks evidence for requests of this kind (:mod:`echolm.router.warm_up`). It is
  asked with the retrieved examples and without, as far as it lacks evidence of either. Where all
  have some, but it is not clear yet which is the best one, answers are compared as those of the
  sampled share are, ever more seldom.

The learning log gets what a caller's feedback would be there, too: a ``preference`` with ``share``
from judges that compare, and ``rating`` events from others. Their ``source`` is ``judge:<kind>``,
and ``judging`` is an object:

- ``reason``, and ``probability``: that with which such a rating is made; 0 unless it was drawn at
  random; ``propensity``: :func:`~echolm.judges.events.rated_propensity`; ``request_id``: of the
  answer that was served
- ``asked``: whether the answer was made for the judgement; in a preference a list of those of
  ``better`` and ``worse`` that were. The propensity of such an answer is that of being asked, and
  off-policy estimates of what was served must drop it.
- ``tokens`` and ``seconds``: of the whole judgement, second answer included; 0 in the second event
  of one
- ``consistent``, in a preference: see :class:`~echolm.judges.base.Judgement`
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from echolm.conversation import readable
from echolm.errors import EchoError
from echolm.judges.base import Judge, Judgement, spent_tokens
from echolm.judges.events import Judged, JudgedAnswer, judged_events, rated_propensity
from echolm.learning.event_log import EventLog
from echolm.learning.feedback import describe
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.tracker import ServingLoad
from echolm.primitives import AUTO, STORED, Decision, Served
from echolm.router.policy import Policy, decision_record
from echolm.router.warm_up import GivenUp, WarmUp
from echolm.settings import JudgingSettings, Settings

logger = logging.getLogger("echolm")

_MOST_SAVED = 10.0  # judgements that a time without solicited requests leaves for later


Reason = Literal["random", "solicited", "shadow", "stored"]
"""Why an answer is judged; ``stored``: it is compared with a stored one, with no LLM asked."""


class JudgingMetrics(Protocol):
    """Counts what judging does and costs."""

    def judged(self, kind: str, reason: Reason, result: str, tokens: int, seconds: float) -> None:
        """Count a judgement by its result.

        ``rated``, ``no_preference`` (the judge could not decide), ``failed`` and ``timeout`` are
        results of judgements that were begun, ``load`` and ``busy`` of those given up before.
        """

    def both_orders(self, kind: str, consistent: bool) -> None:
        """Two answers were compared in both orders; whether the judge said the same."""

    def rated(self, llm: str, score: float, predicted: float) -> None:
        """A rating of an LLM's answer, and what the router had expected of it."""

    def compared(self, llm: str, reason: Reason, share: float) -> None:
        """The share that an LLM's answer has won against another LLM's."""

    def warm_up_given_up(self, reason: GivenUp) -> None:
        """An LLM is tried without a warm-up for requests of one kind."""


@dataclass
class Sampler:
    """Draws the answers to be judged: some at random, some where the router is unsure.

    Both parts are kept apart, so that the random part stays an unbiased sample of the requests.
    The other part is a budget that grows with every request and is spent on solicited ones.
    """

    share: float
    solicited_share: float
    rng: random.Random
    _budget: float = field(default=0.0, init=False)

    @property
    def probability(self) -> float:
        """Probability with which an answer is drawn at random."""
        return self.share * (1.0 - self.solicited_share)

    def draw(self, solicited: bool) -> Reason | None:
        """Why this answer is judged; None if it is not."""
        self._budget = min(_MOST_SAVED, self._budget + self.share * self.solicited_share)
        if self.rng.random() < self.probability:
            return "random"
        if solicited and self._budget >= 1.0 - 1e-9:  # a sum of shares
            self._budget -= 1.0
            return "solicited"
        return None


@dataclass
class _Spent:
    """Tokens that a judgement has cost so far; it may end at any moment."""

    tokens: int = 0


@dataclass(frozen=True)
class _Side:
    """One of the two answers that are compared."""

    text: str
    decision: Decision
    asked: bool


@dataclass(frozen=True)
class _Case:
    """A judgement that is to be made of a served answer.

    Attributes:
        llm: is asked for the other answer.
        propensity: probability with which this LLM was chosen for it.
        examples: whether it is asked with the retrieved examples.
    """

    reason: Reason
    llm: str
    propensity: float = 1.0
    examples: bool = True


@dataclass
class JudgingService:
    """Judges answers in the background. An ``AnswerObserver`` of the router.

    It never delays or fails a request: it begins after the answer, does nothing while the LLMs
    are busy, queues nothing, and drops what takes too long.

    Attributes:
        warm_up: which LLMs are to be asked beside the one that answered; None: none.
        tasks: the judgements that are going on.
    """

    settings: Settings
    judge: Judge
    endpoints: Mapping[str, LLMEndpoint]
    policy: Policy
    load: ServingLoad
    log: EventLog
    metrics: JudgingMetrics
    warm_up: WarmUp | None = None
    rng: random.Random = field(default_factory=random.Random)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings.judging
        self.sampler = Sampler(s.sample_share, s.solicited_share, self.rng)
        self._reference = self.settings.reference_llm.name

    def served(self, served: Served) -> None:
        """Judge the answer, perhaps; see ``AnswerObserver``."""
        try:
            if not may_be_judged(served, self.settings.judging):
                return
            sampling = served.request.sampling
            for case in self._cases(served):
                if self.endpoints[case.llm].client.lacks(sampling):
                    continue  # LLMs are compared by what they answer to the same request
                if refused := self._refusal():
                    self.metrics.judged(self.judge.kind, case.reason, refused, 0, 0.0)
                    continue
                task = asyncio.get_running_loop().create_task(self._run(served, case))
                # The loop keeps only weak references to tasks.
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        except Exception as error:  # the answer must go out whatever happens here
            logger.error("judging failed", exc_info=error)

    def _cases(self, served: Served) -> list[_Case]:
        """What is to be judged about an answer."""
        reason = self.sampler.draw(bool(served.decision.solicited))
        if reason is None and (shadows := self._shadows(served)):
            return shadows
        if reason is None and self._is_wanted(served):
            reason = "shadow"
        if reason is None:
            return []
        if served.decision.llm != self._reference:
            return [_Case(reason, self._reference)]
        return [_Case(reason, *self._draw_candidate(served))]

    def _shadows(self, served: Served) -> list[_Case]:
        """One of the LLMs that lack evidence for such a request, with and without examples."""
        answered = served.decision.llm
        if self.warm_up is None or (
            self.judge.scale == "agreement" and answered != self._reference
        ):
            return []
        has_examples = bool(served.retrieved.examples)
        lacking: dict[str, list[bool]] = {}
        for examples in {has_examples, False}:
            for llm in self.warm_up.lacking(examples):
                # To an LLM that takes no examples a request is the same with and without.
                takes = self.endpoints[llm].settings.takes_examples
                if llm != answered and (takes or examples == has_examples):
                    lacking.setdefault(llm, []).append(examples)
        if not lacking:
            return []
        llm = self.rng.choice(list(lacking))
        return [_Case("shadow", llm, 1.0 / len(lacking), examples) for examples in lacking[llm]]

    def _is_wanted(self, served: Served) -> bool:
        """Whether an answer is compared though all LLMs have some evidence, drawn at random.

        The probability falls with the evidence, and with the probability that another LLM is the
        best one. In the simulation of ``tests/unit/judges/test_cold_start.py`` (16 seeds, the large
        LLM is right in 93%) a small LLM that is right in 92%, 86% or 75% with examples gets 0.94,
        0.39 and 0.01 of the second 1,000 requests with examples, and 145, 175 and 60 comparisons
        besides the warm-up's of the first 1,000, then 104, 145 and 33. With a quarter as many
        (``THOROUGH`` 1) more seeds start with the wrong LLM: the worst of 32 gave 0.24 of the first
        1,000 in the first case, and 0.50 with them.
        """
        if self.warm_up is None:
            return False
        share = self.warm_up.share(bool(served.retrieved.examples))
        return self.rng.random() < share * served.choice.doubt

    def _refusal(self) -> str:
        if sum(map(self.load.in_flight, self.endpoints)) > self.settings.judging_limit:
            return "load"
        return "busy" if len(self.tasks) >= self.settings.judging.max_concurrent else ""

    async def _run(self, served: Served, case: _Case) -> None:
        started, spent = time.perf_counter(), _Spent()
        judging = self._judge(served, case, spent)
        try:
            rated = await asyncio.wait_for(judging, self.settings.judging.timeout_s)
            result = "rated" if rated else "no_preference"
        except asyncio.TimeoutError:
            result = "timeout"
        except EchoError as error:
            result = "failed"
            logger.warning("no judgement: %s", error)
        except Exception as error:  # a defect of a judge or a grader ends one judgement
            result = "failed"
            logger.error("no judgement", exc_info=error)
        seconds = time.perf_counter() - started
        self.metrics.judged(self.judge.kind, case.reason, result, spent.tokens, seconds)

    async def _judge(self, served: Served, case: _Case, spent: _Spent) -> bool:
        """Get the second answer, judge, log; whether the judge could decide."""
        started = time.perf_counter()
        routed = _Side(served.text, served.decision, asked=False)
        asked = await self._ask(served, case, spent)
        candidate, reference = (routed, asked) if case.llm == self._reference else (asked, routed)
        judgement = await self._ask_judge(served, candidate.text, reference.text, spent)
        if self.warm_up is not None:
            self.warm_up.judged(judgement.score is not None)
        if judgement.consistent is not None:
            self.metrics.both_orders(self.judge.kind, judgement.consistent)
        if judgement.score is None:
            return False
        # What grading the other answer costs belongs to the judgement.
        other = Judgement(None)
        if self.judge.scale == "absolute":
            other = await self._ask_judge(served, reference.text, None, spent)
        result = Judged(judgement.score, other.score, spent.tokens, judgement.consistent)
        judging = {
            "reason": case.reason,
            "probability": self.sampler.probability if case.reason == "random" else 0.0,
            "request_id": served.decision.request_id,
            "tokens": spent.tokens,
            "seconds": round(time.perf_counter() - started, 3),
        }
        sides = (candidate, reference)
        first, second = (self._judged_answer(served, side) for side in sides)
        for kind, body in judged_events(self.judge, result, first, second, judging):
            await asyncio.to_thread(self.log.append, kind, body)
        self._count(sides, result, case.reason)
        return True

    def _judged_answer(self, served: Served, side: _Side) -> JudgedAnswer:
        drawn, llm = served.choice.probabilities, side.decision.llm
        propensity = rated_propensity(drawn, llm, self._reference, list(self.endpoints))
        return JudgedAnswer(describe(side.decision), side.asked, propensity)

    def _count(self, sides: tuple[_Side, _Side], result: Judged, reason: Reason) -> None:
        assert result.score is not None
        if self.judge.scale == "preference":
            for side, share in zip(sides, (result.score, 1.0 - result.score), strict=True):
                self.metrics.compared(side.decision.llm, reason, share)
            return
        for side, score in zip(sides, (result.score, result.reference_score), strict=True):
            if score is not None:
                self.metrics.rated(side.decision.llm, score, side.decision.quality)

    async def _ask_judge(
        self, served: Served, answer: str, reference: str | None, spent: _Spent
    ) -> Judgement:
        asked = readable(served.request.transcript)
        judgement = await self.judge.judge(asked, answer, reference)
        spent.tokens += judgement.tokens
        return judgement

    def _draw_candidate(self, served: Served) -> tuple[str, float]:
        """An LLM other than the reference, by the router's confidence, and its probability."""
        names = [name for name in self.endpoints if name != self._reference]
        weights = [served.choice.probabilities.get(name, 0.0) for name in names]
        if sum(weights) <= 0.0:  # a stand-in, or no other LLM was eligible
            weights = [1.0] * len(names)
        drawn = self.rng.choices(range(len(names)), weights)[0]
        return names[drawn], weights[drawn] / sum(weights)

    async def _ask(self, served: Served, case: _Case, spent: _Spent) -> _Side:
        """Another LLM's answer to the same request, sampled alike."""
        endpoint, request = self.endpoints[case.llm], served.request
        retrieved, x, statistics = served.retrieved, served.x, served.choice.statistics
        if not case.examples and retrieved.examples:
            retrieved = replace(retrieved, examples=(), selection="")
            x, choice = self.policy.force(replace(request, llm=case.llm), retrieved)
        else:
            choice = self.policy.forced_choice(x, case.llm, statistics)
        prompt, used = endpoint.prompt(request, retrieved.examples)
        id = uuid.uuid4().hex
        with self.load.serving(case.llm):
            sampling = endpoint.sampling(request.sampling)
            completion = await endpoint.client.generate(f"judge-{id}", prompt, sampling, None)
        spent.tokens += spent_tokens(endpoint.tokens, prompt, completion)
        choice = replace(choice, propensity=case.propensity)
        revision = endpoint.settings.revision
        decision = decision_record(id, request, retrieved, x, choice, used, revision)
        return _Side(completion.text, decision, asked=True)


def may_be_judged(served: Served, settings: JudgingSettings) -> bool:
    """Whether an answer may be shown to a judge and to other LLMs, and teaches the router.

    Not if the caller forbids to learn from it (``no-store``), has chosen the LLM, or belongs to an
    excluded tenant; nor if routing failed, since a rating teaches nothing without a context; nor if
    it may be calls of tools, which a judge of texts cannot compare.
    """
    request = served.request
    return (
        request.store
        and request.llm == AUTO
        and not request.sampling.tools
        and served.decision.llm != STORED  # see echolm.judges.stored
        and request.tenant not in settings.exclude_tenants
        and bool(served.x.any())
    )
