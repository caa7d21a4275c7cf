"""Improves examples while the LLMs have nothing else to do (paper, §4.3).

An example whose many uses ended in poor answers of a costly LLM has much to gain, ``G(e)`` (see
:class:`~echolm.examples.statistics.ExampleStatistics`). Those are taken first: their LLM answers
the stored request some times more, a judge picks the best answer, and if that beats the stored
one, it replaces it. Most stored answers are good: the judge finds them good, or a first sample
agrees with them, and no more is spent on them. Replay ends where the next example has too little
to gain, or where the last ones were replayed without any improvement.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from echolm.clock import now_ms
from echolm.conversation import readable, turns_of
from echolm.errors import EchoError, InvalidRequestError
from echolm.examples.events import REPLAY, replayed
from echolm.examples.replacement import finish_interrupted, replace_example
from echolm.examples.statistics import StatisticsTable
from echolm.examples.writer import ExampleIds
from echolm.judges.base import Judge
from echolm.learning.event_log import EventLog
from echolm.llm.endpoint import LLMEndpoint
from echolm.primitives import Request, Sampling
from echolm.settings import Settings
from echolm.store.base import REPLAYED, Example, ExampleStore, Stored, scope_key

logger = logging.getLogger("echolm")

_PAGE = 50
# Reasons why nothing was tried, nor ever will be; and why it may still be worth another try.
_HOPELESS = ("not in the store", "unknown LLM", "system prompt", "refused")
_UNDECIDED = ("LLM or judge failed", "replaced elsewhere")


@dataclass(frozen=True)
class Replayed:
    """What became of one example.

    Attributes:
        id: its id before replay; a better response has a new one.
        improved: whether its response was replaced.
        reason: why nothing was tried, or nothing came of it; empty otherwise.
        candidates: answers that were generated.
        tokens: read and written by the LLM and the judge.
    """

    id: int
    improved: bool = False
    reason: str = ""
    candidates: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass
class ReplayCost:
    """Sum over replayed examples; see :class:`Replayed`."""

    examples: int = 0
    improved: int = 0
    candidates: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, replayed: Replayed) -> None:
        """Count an example."""
        self.examples += 1
        self.improved += replayed.improved
        self.candidates += replayed.candidates
        self.tokens += replayed.tokens
        self.seconds += replayed.seconds


@dataclass
class Replayer:
    """Replays examples one after the other, the one with most to gain first.

    What was replayed is in the learning log, so a replay that was interrupted goes on where it
    ended, in whatever process; what it had left half done is finished first.
    """

    store: ExampleStore
    statistics: StatisticsTable
    log: EventLog
    endpoints: Mapping[str, LLMEndpoint]
    judge: Judge
    settings: Settings
    _ids: ExampleIds = field(default_factory=ExampleIds, init=False)

    async def run(self, limit: int) -> AsyncIterator[Replayed]:
        """Replay up to ``limit`` examples, or fewer by the module's rule.

        Raises:
            UnavailableError: store, log or statistics cannot be reached.
        """
        fruitless = 0
        tried: set[int] = set()
        finish_interrupted(self.store, self.statistics, self.log)
        while len(tried) < limit and fruitless < self.settings.replay.patience:
            self.statistics.follow(self.log)
            id = self._next(tried)
            if id is None:
                return
            tried.add(id)
            result = await self._replay(id)
            fruitless = 0 if result.improved else fruitless + 1
            yield result

    def _next(self, tried: set[int]) -> int | None:
        """Id of the example with most to gain of those that may be replayed."""
        replay, offset = self.settings.replay, 0
        passed = tried | {begun.old for begun in self.statistics.replacements()}
        while page := self.statistics.ranked("gain", _PAGE, offset):
            for example in page:
                if example.gain < replay.min_gain:
                    return None
                if example.id not in passed and example.replays < replay.max_replays:
                    return example.id
            offset += len(page)
        return None

    async def _replay(self, id: int) -> Replayed:
        started = time.perf_counter()
        result = Replayed(id, reason="not in the store")
        if stored := self.store.get([id]):
            result = await self._improve(stored[0])
        if result.reason in _HOPELESS:  # it leaves the list
            self.log.append(REPLAY, replayed(id, self.settings.replay.max_replays))
        elif not result.improved and result.reason not in _UNDECIDED:
            self.log.append(REPLAY, replayed(id, 1))
        return replace(result, seconds=time.perf_counter() - started)

    async def _improve(self, stored: Stored) -> Replayed:
        example, embedding = stored
        endpoint = self.endpoints.get(example.source_llm)
        if endpoint is None:
            return Replayed(example.id, reason="unknown LLM")
        if example.scope != scope_key(example.tenant, ""):
            # Only a hash of the system prompt is stored, and another one asks for other answers.
            return Replayed(example.id, reason="system prompt")
        cost, improved = ReplayCost(), False
        try:
            best, reason = await self._better(example, endpoint, cost)
        except InvalidRequestError as error:  # its LLM will not take it the next time either
            logger.warning("replay of example %d is refused: %s", example.id, error)
            best, reason = None, "refused"
        except EchoError as error:
            logger.warning("replay of example %d failed: %s", example.id, error)
            best, reason = None, "LLM or judge failed"
        if best is not None:
            better = replace(
                example,
                id=self._ids.next(),
                response=best,
                updated_at_ms=now_ms(),
                answer_keys=REPLAYED,  # the answer was sampled otherwise than anybody asks for
            )
            parts = (self.store, self.statistics, self.log)
            improved = replace_example(*parts, example.id, (better, embedding))
            reason = "" if improved else "replaced elsewhere"
        return Replayed(example.id, improved, reason, cost.candidates, cost.tokens)

    async def _better(
        self, example: Example, endpoint: LLMEndpoint, cost: ReplayCost
    ) -> tuple[str | None, str]:
        """An answer that clearly beats the stored one; or None, and why there is none."""
        replay, scale, stored = self.settings.replay, self.judge.scale, example.response
        good = 1.0 - replay.margin
        answers: list[str] = []
        before: float | None = 0.5  # of a preference: what a tie with the stored one is worth
        if scale == "absolute":
            before = await self._score(example, stored, None, cost)
            if before is not None and before >= good:
                return None, "good already"
        elif scale == "agreement":
            answers = await self._sample(example, endpoint, 1, cost)
            if answers == [stored]:
                return None, "good already"
            if answers and (await self._score(example, stored, answers[0], cost) or 0.0) >= good:
                return None, "good already"
        answers += await self._sample(example, endpoint, replay.candidates - cost.candidates, cost)
        others = [text for text in dict.fromkeys(answers) if text != stored]
        if not others:
            return None, "no other answer"
        if scale == "agreement":
            # Of samples of one LLM, the one that the others agree with most is the likeliest to
            # be right (minimum Bayes risk decoding: Kumar and Byrne 2004).
            voters = [stored, *answers]
            before = await self._agreement(example, stored, voters, cost)
            after = [await self._agreement(example, text, voters, cost) for text in others]
        else:
            reference = stored if scale == "preference" else None
            after = [await self._score(example, text, reference, cost) for text in others]
        ranked = [(s, a) for s, a in zip(after, others, strict=True) if s is not None]
        if before is None or not ranked:
            return None, "no score"
        best_score, best = max(ranked, key=lambda pair: pair[0])
        return (best, "") if best_score > before + replay.margin else (None, "none is better")

    async def _sample(
        self, example: Example, endpoint: LLMEndpoint, n: int, cost: ReplayCost
    ) -> list[str]:
        """The complete ones of ``n`` answers to the example's request."""
        max_tokens = self.settings.limits.default_max_tokens
        sampling = endpoint.sampling(Sampling(max_tokens, self.settings.replay.temperature))
        *history, last = turns_of(example.request)
        request = Request(
            last.text, sampling, history=tuple(history), tool_call_id=last.tool_call_id
        )
        prompt, _ = endpoint.prompt(request, [])
        generate = endpoint.client.generate
        ids = [f"replay-{uuid.uuid4().hex}" for _ in range(n)]
        completions = await asyncio.gather(*(generate(id, prompt, sampling, None) for id in ids))
        cost.candidates += n
        for c in completions:
            cost.tokens += max(0, c.num_input_tokens) + max(0, c.num_output_tokens)
        return [c.text for c in completions if c.finish_reason == "stop" and c.text.strip()]

    async def _agreement(
        self, example: Example, answer: str, voters: Sequence[str], cost: ReplayCost
    ) -> float | None:
        """How far the others agree with one of the voters' answers on average."""
        others = list(voters)
        others.remove(answer)
        scores = [
            1.0 if other == answer else await self._score(example, answer, other, cost)
            for other in others
        ]
        known = [score for score in scores if score is not None]
        return sum(known) / len(known) if known else None

    async def _score(
        self, example: Example, answer: str, reference: str | None, cost: ReplayCost
    ) -> float | None:
        judgement = await self.judge.judge(readable(example.request), answer, reference)
        cost.tokens += judgement.tokens
        return judgement.score
