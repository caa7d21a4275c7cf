"""Which answers are judged, what each is compared with, and what the router learns from it.

A judgement compares two LLMs on one request: the *reference* LLM (the strongest) and a
*candidate*. If a candidate answered, the reference LLM is asked, too; if the reference LLM
answered, a candidate drawn by the router's confidence is asked, with the examples that were
retrieved for the request (paper, §4.2: the top arm and one sampled by confidence). So what is
learnt of an LLM does not depend on where the router sends it, and an LLM that gets no requests
any more can still win them back.

The learning log gets ``rating`` events with ``source`` ``judge:<kind>`` and ``judging``, an
object: ``tokens`` and ``seconds`` (the whole judgement, second answer included; 0 in the second
event of one), ``request_id`` (of the answer that was served), ``solicited`` (the request was picked
because the router was unsure; otherwise at random), ``asked`` (the answer was made for the
judgement; its own propensity is that of being asked), and for off-policy estimates ``probability``
and ``propensity``, see :meth:`JudgingService.sampling`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from echolm.errors import EchoError
from echolm.judges.base import Judge, Judgement, spent_tokens
from echolm.learning.event_log import EventLog
from echolm.learning.feedback import JUDGE_SOURCE, RATING, describe
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.tracker import ServingLoad
from echolm.primitives import AUTO, Decision, Served
from echolm.router.policy import Policy, decision_record
from echolm.settings import JudgingSettings, Settings

logger = logging.getLogger("echolm")

_MOST_SAVED = 10.0  # judgements that a time without solicited requests leaves for later


class JudgingMetrics(Protocol):
    """Counts what judging does and costs."""

    def judged(self, kind: str, result: str, tokens: int, seconds: float) -> None:
        """Count a judgement by its result.

        ``rated``, ``no_preference`` (the judge could not decide), ``failed`` and ``timeout`` are
        results of judgements that were begun, ``load`` and ``busy`` of those given up before.
        """

    def rated(self, llm: str, score: float, predicted: float) -> None:
        """A rating of an LLM's answer, and what the router had expected of it."""


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
    def random_share(self) -> float:
        """Share of all answers that is judged whatever they are."""
        return self.share * (1.0 - self.solicited_share)

    def draw(self, solicited: bool) -> str:
        """Why this answer is judged: ``random`` | ``solicited`` | empty (it is not)."""
        self._budget = min(_MOST_SAVED, self._budget + self.share * self.solicited_share)
        if self.rng.random() < self.random_share:
            return "random"
        if solicited and self._budget >= 1.0 - 1e-9:  # a sum of shares
            self._budget -= 1.0
            return "solicited"
        return ""


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


@dataclass
class JudgingService:
    """Judges a share of the answers in the background. An ``AnswerObserver`` of the router.

    It never delays or fails a request: it begins after the answer, does nothing while the LLMs
    are busy, and drops what takes too long. ``tasks`` are the judgements that are going on.
    """

    settings: Settings
    judge: Judge
    endpoints: Mapping[str, LLMEndpoint]
    policy: Policy
    load: ServingLoad
    log: EventLog
    metrics: JudgingMetrics
    rng: random.Random = field(default_factory=random.Random)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    sampler: Sampler = field(init=False)

    def __post_init__(self) -> None:
        s = self.settings.judging
        self.sampler = Sampler(s.sample_share, s.solicited_share, self.rng)
        self._reference = s.reference_llm or self.settings.strongest_llm.name

    def served(self, served: Served) -> None:
        """Judge the answer, perhaps; see ``AnswerObserver``."""
        try:
            if not may_be_judged(served, self.settings.judging):
                return
            reason = self.sampler.draw(served.solicited)
            if not reason:
                return
            if refused := self._refusal():
                self.metrics.judged(self.judge.kind, refused, 0, 0.0)
                return
            task = asyncio.get_running_loop().create_task(self._run(served, reason))
            # The loop keeps only weak references to tasks.
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        except Exception as error:  # the answer must go out whatever happens here
            logger.error("judging failed", exc_info=error)

    def _refusal(self) -> str:
        s = self.settings.judging
        if sum(self.load.in_flight(name) for name in self.endpoints) > s.max_in_flight_llm_requests:
            return "load"
        return "busy" if len(self.tasks) >= s.max_concurrent else ""

    async def _run(self, served: Served, reason: str) -> None:
        started, spent = time.perf_counter(), _Spent()
        judging = self._judge(served, reason, spent)
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
        self.metrics.judged(self.judge.kind, result, spent.tokens, seconds)

    async def _judge(self, served: Served, reason: str, spent: _Spent) -> bool:
        """Get the second answer, judge, log; whether the judge could decide."""
        started = time.perf_counter()
        routed = _Side(served.text, served.decision, asked=False)
        if routed.decision.llm == self._reference:
            llm, share = self._draw_candidate(served)
            candidate, reference = await self._ask(served, llm, share, spent), routed
        else:
            candidate, reference = routed, await self._ask(served, self._reference, 1.0, spent)
        ratings = await self._ratings(served, candidate, reference, spent)
        if not ratings:
            return False
        cost = {"tokens": spent.tokens, "seconds": round(time.perf_counter() - started, 3)}
        events = []
        for side, score in ratings:
            judging = {**cost, "solicited": reason == "solicited", "asked": side.asked}
            judging["request_id"] = routed.decision.request_id
            judging |= self.sampling(served, side.decision.llm, reason)
            rating = {"score": score, "source": JUDGE_SOURCE + self.judge.kind, "judging": judging}
            events.append({**describe(side.decision), **rating})
            cost = {"tokens": 0, "seconds": 0.0}
        await asyncio.to_thread(self._append, events)
        for side, score in ratings:
            self.metrics.rated(side.decision.llm, score, side.decision.quality)
        return True

    def _append(self, events: Sequence[Mapping[str, Any]]) -> None:
        for event in events:
            self.log.append(RATING, event)

    async def _ratings(
        self, served: Served, candidate: _Side, reference: _Side, spent: _Spent
    ) -> list[tuple[_Side, float]]:
        """Qualities on the bandit's scale; empty if the judge could not decide."""
        judgement = await self._ask_judge(served, candidate.text, reference.text, spent)
        if judgement.score is None:
            return []
        if self.judge.scale == "preference":
            expected = (candidate.decision.quality, reference.decision.quality)
            scores = pair_scores(judgement.score, *expected)
            return list(zip((candidate, reference), scores, strict=True))
        ratings = [(candidate, judgement.score)]
        if self.judge.scale == "absolute":
            other = await self._ask_judge(served, reference.text, None, spent)
            if other.score is not None:
                ratings.append((reference, other.score))
        return ratings

    async def _ask_judge(
        self, served: Served, answer: str, reference: str | None, spent: _Spent
    ) -> Judgement:
        judgement = await self.judge.judge(served.request.text, answer, reference)
        spent.tokens += judgement.tokens
        return judgement

    def _draw_candidate(self, served: Served) -> tuple[str, float]:
        """An LLM other than the reference, by the router's confidence, and its probability."""
        names = [name for name in self.endpoints if name != self._reference]
        weights = [served.choice.probabilities.get(name, 0.0) for name in names]
        if sum(weights) <= 0.0:  # the record of a stand-in: its confidence is not known
            weights = [1.0] * len(names)
        drawn = self.rng.choices(range(len(names)), weights)[0]
        return names[drawn], weights[drawn] / sum(weights)

    def sampling(self, served: Served, llm: str, reason: str) -> dict[str, float]:
        """How probable a rating is, as ``probability`` and ``propensity`` of its event.

        ``probability`` is that with which such an answer is judged; 0 unless it was picked at
        random and its rating says what its LLM is worth: a judge who only compares says how far
        two answers are apart, and one who measures agreement does not rate the reference.
        ``propensity`` is :func:`rated_propensity`.
        """
        routed = served.choice.probabilities
        propensity = rated_propensity(routed, llm, self._reference, list(self.endpoints))
        if reason != "random" or self.judge.scale != "absolute" or propensity <= 0.0:
            return {"probability": 0.0, "propensity": 0.0}
        return {"probability": self.sampler.random_share, "propensity": propensity}

    async def _ask(self, served: Served, llm: str, propensity: float, spent: _Spent) -> _Side:
        """Another LLM's answer to the same request, sampled alike."""
        endpoint, request = self.endpoints[llm], served.request
        prompt, used = endpoint.prompt(request, served.retrieved.examples)
        id, retrieved, x = uuid.uuid4().hex, served.retrieved, served.x
        with self.load.serving(llm):
            completion = await endpoint.client.generate(
                f"judge-{id}", prompt, request.sampling, None
            )
        spent.tokens += spent_tokens(endpoint.tokens, prompt, completion)
        forced = self.policy.forced_choice(x, llm, served.choice.statistics)
        choice = replace(forced, propensity=propensity)
        revision = endpoint.settings.revision
        decision = decision_record(id, request, retrieved, x, choice, used, revision)
        return _Side(completion.text, decision, asked=True)


def may_be_judged(served: Served, settings: JudgingSettings) -> bool:
    """Whether an answer may be shown to a judge and to other LLMs, and teaches the router.

    Not if the caller forbids to learn from it (``no-store``), has chosen the LLM, or belongs to an
    excluded tenant; nor if routing failed, since a rating teaches nothing without a context.
    """
    request = served.request
    return (
        request.store
        and request.llm == AUTO
        and request.tenant not in settings.exclude_tenants
        and bool(served.x.any())
    )


def rated_propensity(
    routed: Mapping[str, float], llm: str, reference: str, llms: Sequence[str]
) -> float:
    """The probability that of the two answers in a judgement, one drawn evenly is by ``llm``.

    That is half the probability that ``llm`` was routed to, or was asked beside the reference.
    The propensities of all arms sum to 1.

    Args:
        routed: the probabilities of the router's draw.
        llms: those that may be asked.

    Returns:
        0 where nothing was drawn, or no candidate could have been.
    """
    candidates = sum(routed.get(name, 0.0) for name in llms if name != reference)
    if len(routed) < 2 or candidates <= 0.0:
        return 0.0
    if llm == reference:
        return 0.5
    asked = routed.get(reference, 0.0) / candidates if llm in llms else 0.0
    return routed.get(llm, 0.0) * (1.0 + asked) / 2.0


def pair_scores(share: float, candidate: float, reference: float) -> tuple[float, float]:
    """Ratings of two answers of which one won ``share`` of the comparisons.

    A comparison shows how far the answers are apart and not how good they are. So both ratings
    lie around the middle of the qualities that the router expected of ``candidate`` and
    ``reference``, ``share`` - 0.5 apart, which is what the comparison adds to the win rate; both
    are moved alike where one would leave 0..1. A tie teaches that both are equally good, and
    ratings by callers of one of the two LLMs only do not tilt the balance.
    """
    middle, half = (candidate + reference) / 2.0, (share - 0.5) / 2.0
    middle = min(1.0 - abs(half), max(abs(half), middle))
    return middle + half, middle - half
