"""Compares stored answers with fresh ones, from which it is learnt when they may be given.

Whenever the strongest LLM answers a request for which there is a stored answer, both are there, at
no cost. The same text says that the stored one is right. Where the texts differ, a judge says of a
sampled share, and of all checks, whether the stored one is as good; without a judge it is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from echolm.bandit.reuse import COMPARISON, Comparison, describe
from echolm.conversation import readable
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.judges.base import Judge
from echolm.judges.events import judged
from echolm.judges.service import Reason
from echolm.learning.event_log import EventLog
from echolm.load.tracker import ServingLoad
from echolm.primitives import Reusable, Served
from echolm.retrieval.reuse import normalised
from echolm.settings import Settings

logger = logging.getLogger("echolm")

_FLUSH_EVERY_S = 1.0
_MOST_WAITING = 5_000  # while the log is away, more are not remembered
_AGREES = 0.9  # least agreement of two answers that are as good as each other
_TOLERANCE = 0.05  # by which the quality of one of them may be less


class ReuseMetrics(Protocol):
    """Counts comparisons of stored answers, and what judging them costs."""

    def judged(self, kind: str, reason: Reason, result: str, tokens: int, seconds: float) -> None:
        """See :class:`echolm.judges.service.JudgingMetrics`."""

    def stored_compared(self, exact: bool, result: str) -> None:
        """Count a comparison: ``same`` | ``right`` | ``wrong`` | ``unjudged``."""


@dataclass
class StoredComparisons:
    """An ``AnswerObserver`` that compares, and logs what it finds. For one event loop.

    Attributes:
        judge: None if there is none.
        tasks: judgements that are going on.
        lost: comparisons that were not logged, since the log was away for too long.
    """

    settings: Settings
    judge: Judge | None
    load: ServingLoad
    log: EventLog
    metrics: ReuseMetrics
    rng: random.Random = field(default_factory=random.Random)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    lost: int = field(default=0, init=False)
    _waiting: list[Comparison] = field(default_factory=list, init=False)

    def served(self, served: Served) -> None:
        """Compare the answer with the stored one, if there is one; see ``AnswerObserver``."""
        try:
            found = served.retrieved.reusable
            strongest = self.settings.strongest_llm.name
            if found is None or served.decision.llm != strongest or not served.request.store:
                return
            same = normalised(found.response) == normalised(served.text)
            made = Comparison(found.id, found.exact, found.features, same, propensity=served.check)
            if same:
                self._keep(made, "same")
            elif self.judge is None:
                self._keep(replace(made, right=False), "wrong")
            elif self._may_judge(served):
                self._start(self._judge(self.judge, served, found, made))
            else:
                self._keep(made, "unjudged")
        except Exception as error:  # the answer must go out whatever happens here
            logger.error("stored answer not compared", exc_info=error)

    def _may_judge(self, served: Served) -> bool:
        s, llms = self.settings.judging, self.settings.llms
        return (
            served.request.tenant not in s.exclude_tenants
            and sum(self.load.in_flight(llm.name) for llm in llms) <= self.settings.judging_limit
            and len(self.tasks) < s.max_concurrent
            and (served.check > 0.0 or self.rng.random() < s.sample_share)
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)  # the loop keeps only weak references to tasks
        task.add_done_callback(self.tasks.discard)

    async def _judge(self, judge: Judge, served: Served, found: Reusable, made: Comparison) -> None:
        started, tokens, right = time.perf_counter(), 0, None
        try:
            asked = readable(served.request.transcript)
            judging = as_good(judge, asked, found.response, served.text)
            timeout_s = self.settings.judging.timeout_s
            right, tokens = await asyncio.wait_for(judging, timeout_s)
            result = "no_preference" if right is None else "rated"
        except asyncio.TimeoutError:
            result = "timeout"
        except Exception as error:  # a defect of a judge or a grader ends one judgement
            result = "failed"
            defect = not isinstance(error, EchoError)
            logger.warning("stored answer not judged: %s", error, exc_info=defect)
        seconds = time.perf_counter() - started
        self.metrics.judged(judge.kind, "stored", result, tokens, seconds)
        shown = "unjudged" if right is None else "right" if right else "wrong"
        self._keep(replace(made, right=right), shown)

    def _keep(self, made: Comparison, result: str) -> None:
        self.metrics.stored_compared(made.exact, result)
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append(made)
        else:
            self.lost += 1

    async def flush(self) -> None:
        """Append what was compared since the last time to the log; kept if the log is away."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        try:
            await asyncio.to_thread(self.log.append, COMPARISON, describe(waiting))
        except UnavailableError as error:
            logger.warning("comparisons of stored answers not logged, will retry: %s", error)
            self._waiting = [*waiting, *self._waiting][:_MOST_WAITING]
        except InvalidRequestError as error:  # a number is none; the next ones may be right
            logger.error("comparisons of stored answers dropped: %s", error)
            self.lost += len(waiting)

    async def run(self) -> None:
        """Flush again and again."""
        while True:
            await asyncio.sleep(_FLUSH_EVERY_S)
            await self.flush()


async def as_good(judge: Judge, request: str, stored: str, fresh: str) -> tuple[bool | None, int]:
    """Whether a stored answer is as good as a fresh one, and the tokens that the judge took.

    None if the judge could not decide.
    """
    result = await judged(judge, request, stored, fresh)
    score, other = result.score, result.reference_score
    right: bool | None = None
    if score is not None and judge.scale != "absolute":
        right = score >= (0.5 if judge.scale == "preference" else _AGREES)
    elif score is not None and other is not None:
        right = score >= other - _TOLERANCE
    return right, result.tokens
