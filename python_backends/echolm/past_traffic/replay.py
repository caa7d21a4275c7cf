"""Asks the other LLMs what the log's LLM was asked, and lets the judge compare.

Each request is answered with the examples that are retrieved for it, without its own stored answer
(leave-one-out), and without examples, so that both are known of an LLM. What is paid for is kept
before the next step begins, and what is judged is kept before it is learnt: after a crash nothing
is paid twice but what was under way, and nothing is learnt twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from echolm.conversation import Turn
from echolm.errors import EchoError, InvalidRequestError, UnavailableError
from echolm.examples.transfer import EmbedTexts
from echolm.judges.base import Judge
from echolm.judges.events import JudgedAnswer, judged, judged_events
from echolm.learning.event_log import EventLog
from echolm.learning.feedback import describe
from echolm.llm.endpoint import LLMEndpoint
from echolm.past_traffic.acceptance import request_of
from echolm.past_traffic.cost import Budget, judging_tokens
from echolm.past_traffic.record import Logged
from echolm.past_traffic.report import ServedPairs
from echolm.past_traffic.state import ANSWERED, JUDGED, LEARNT, Pair, PairKey, PastTrafficState
from echolm.past_traffic.storing import PastExamples
from echolm.primitives import Completion, Request, Retrieved, Sampling, Selected
from echolm.retrieval.selector import ExampleSelector
from echolm.router.policy import Policy, decision_record
from echolm.settings import Settings

logger = logging.getLogger("echolm")

_MOST_FAILURES = 10  # in a row, after which an LLM or the judge counts as down


class _OverBudgetError(Exception):
    """The next step may cost more than is left."""


@dataclass(frozen=True)
class _Prompt:
    """One answer to be asked for.

    Attributes:
        context: with or without the examples: what the answer's rating teaches about.
        served: whether the router would have asked this way.
    """

    key: PairKey
    request: Request
    logged: Logged
    retrieved: Retrieved
    context: Retrieved
    served: bool


@dataclass
class PastReplay:
    """Replays logged interactions.

    Attributes:
        reference: name of the LLM whose answers were logged.
        candidates: names of those that answer now.
        learn: brings what was learnt up to date.
        fingerprint: of the log.
        counts: judged pairs, and why others are not.
        stopped: why it ended before all was done; empty otherwise.
    """

    settings: Settings
    endpoints: Mapping[str, LLMEndpoint]
    judge: Judge
    policy: Policy
    selector: ExampleSelector
    examples: PastExamples
    embed: EmbedTexts
    log: EventLog
    state: PastTrafficState
    budget: Budget
    reference: str
    candidates: Sequence[str]
    learn: Callable[[], object]
    fingerprint: str
    concurrent: int = 8
    counts: Counter[str] = field(default_factory=Counter, init=False)
    stopped: str = field(default="", init=False)
    _failures: int = field(default=0, init=False)
    _released: asyncio.Condition = field(default_factory=asyncio.Condition, init=False)

    async def probe(self) -> None:
        """UnavailableError if an LLM that will be asked does not answer."""
        judge = [self.settings.judge_llm.name] if self.settings.judging.kind == "llm" else []
        for name in dict.fromkeys([*self.candidates, *judge]):
            endpoint = self.endpoints[name]
            prompt = endpoint.template.render([Turn("user", "ping")])
            asking = endpoint.client.generate(f"past-probe-{name}", prompt, Sampling(1), None)
            url = endpoint.settings.url or self.settings.grpc_url
            try:
                await asyncio.wait_for(asking, self.settings.limits.request_timeout_s)
            except InvalidRequestError:
                pass  # it is there, and says what it takes
            except (EchoError, asyncio.TimeoutError) as error:
                raise UnavailableError(
                    f"{name}: expected an answer at {url}, got: {error or 'none in time'}; start "
                    "the server (`echolm serve`), or give --no-replay to store examples only"
                ) from error

    async def run(self, sample: Sequence[Logged]) -> AsyncIterator[int]:
        """Replay the sample in its order; yields how many interactions more are done.

        Raises:
            UnavailableError: store, log, an LLM or the judge does not answer; what was done is
                kept.
        """
        size = max(1, 2 * self.concurrent)
        for start in range(0, len(sample), size):
            batch = sample[start : start + size]
            waiting = [logged for logged in batch if not self.is_done(logged)]
            prompts = self._prompts(waiting) if waiting else []
            slots = asyncio.Semaphore(self.concurrent)
            await asyncio.gather(*(self._one(prompt, slots) for prompt in prompts))
            self.learn()
            yield len(batch)
            if self.stopped:
                return

    def _keys(self, logged: Logged) -> list[PairKey]:
        """All pairs of an interaction, those with examples first."""
        keys = []
        for name in self.candidates:
            settings = self.endpoints[name].settings
            ways = [True, False] if settings.takes_examples else [False]
            keys += [PairKey(logged.id, name, settings.revision, way) for way in ways]
        return keys

    def is_done(self, logged: Logged) -> bool:
        """Whether there is nothing left to ask or to judge."""
        pairs = [self.state.pair(key) for key in self._keys(logged)]
        return all(pair is not None and pair.stage == LEARNT for pair in pairs)

    def _prompts(self, batch: Sequence[Logged]) -> list[_Prompt]:
        embeddings = self.embed([logged.request for logged in batch])
        top_n = self.settings.retrieval.top_n
        candidates = self.examples.others(batch, embeddings, top_n)
        selections = self.selector.select([logged.request for logged in batch], candidates)
        prompts = []
        for logged, embedding, selection in zip(batch, embeddings, selections, strict=True):
            record = selection.record
            retrieved = Retrieved(
                embedding,
                selection.examples,
                selection.help_probability,
                "" if record is None else record.dump(),
            )
            request = request_of(logged, self.settings)
            for key in self._keys(logged):
                takes = self.endpoints[key.llm].settings.takes_examples
                bare = replace(retrieved, examples=(), selection="")
                if key.examples and not retrieved.examples:
                    self._keep(Pair(key, LEARNT, "", {}))  # there is nothing to ask
                    continue
                context = retrieved if key.examples or not takes else bare
                served = key.examples or not takes or not retrieved.examples
                prompts.append(_Prompt(key, request, logged, retrieved, context, served))
        return prompts

    def _keep(self, pair: Pair) -> None:
        self.state.keep(pair, self.fingerprint)

    async def _one(self, prompt: _Prompt, slots: asyncio.Semaphore) -> None:
        """One pair, from where it is to its end."""
        async with slots:
            if self.stopped:
                return
            try:
                pair = await self._paid(prompt, self.state.pair(prompt.key))
                if pair is not None and pair.stage == JUDGED:
                    await asyncio.to_thread(self._learnt, pair)
                self._failures = 0
            except _OverBudgetError:
                self.stopped = "budget"
            except InvalidRequestError:
                self._give_up(prompt, "refused by the LLM")
            except (EchoError, asyncio.TimeoutError) as error:
                self.counts["LLM or judge failed"] += 1
                self._failures += 1
                logger.warning("not judged: %s", error or "no answer in time")
                if self._failures >= _MOST_FAILURES:
                    raise UnavailableError(
                        f"learning from past traffic stopped after {self._failures} failures in a "
                        f"row, the last: {error or 'no answer in time'}; what was done is kept: "
                        "run the command again to go on"
                    ) from error

    async def _paid(self, prompt: _Prompt, pair: Pair | None) -> Pair | None:
        """The pair, answered and judged within the budget; None if it cannot be asked.

        Raises:
            _OverBudgetError: it may cost more than is left.
        """
        if pair is not None and pair.stage != ANSWERED:
            return pair
        endpoint = self.endpoints[prompt.key.llm]
        sampling = endpoint.sampling(prompt.request.sampling)
        text, used = endpoint.prompt(prompt.request, prompt.context.examples)
        read = endpoint.tokens.count(text)
        most_tokens = min(sampling.max_tokens, endpoint.settings.context_length - read)
        if pair is None and (most_tokens < 1 or (prompt.key.examples and not used)):
            self._give_up(prompt, "no room in the context")
            return None
        judge = self.endpoints[self.settings.judge_llm.name].tokens
        answers = [max(0, most_tokens), judge.count(prompt.logged.response)]
        judging = judging_tokens(self.settings, judge, prompt.logged.request, answers)
        most = self.budget.cost("judge", *judging)
        if pair is None:
            most += self.budget.cost(prompt.key.llm, read, most_tokens)
        async with self._released:
            # What others have set aside may turn out to be more than they need.
            while not self.budget.reserve(most):
                if not self.budget.reserved:
                    raise _OverBudgetError
                await self._released.wait()
        try:
            if pair is None:
                asked = replace(sampling, max_tokens=most_tokens)
                asking = endpoint.client.generate(prompt.key.request_id, text, asked, None)
                timeout_s = self.settings.limits.request_timeout_s
                completion = await asyncio.wait_for(asking, timeout_s)
                body = self._body(prompt, text, used, completion)
                pair = Pair(prompt.key, ANSWERED, completion.text, body)
                self._keep(pair)
                self.budget.pay(prompt.key.llm, body["read"], body["written"])
            return await self._judged(prompt, pair)
        finally:
            async with self._released:
                self.budget.release(most)
                self._released.notify_all()

    def _give_up(self, prompt: _Prompt, reason: str) -> None:
        self.counts[reason] += 1
        self._keep(Pair(prompt.key, LEARNT, "", {}))

    def _body(
        self, prompt: _Prompt, text: str, used: Sequence[Selected], done: Completion
    ) -> dict[str, Any]:
        """What is known of a pair from its answer on."""
        endpoint, reference = self.endpoints[prompt.key.llm], self.endpoints[self.reference]
        asked = reference.prompt(prompt.request, prompt.retrieved.examples)[0]
        counts = (done.num_input_tokens, done.num_output_tokens)
        read, written = (
            count if count >= 0 else endpoint.tokens.count(of)
            for count, of in zip(counts, (text, done.text), strict=True)
        )
        return {
            "candidate": self._decision(prompt, prompt.key.llm, used, prompt.key.request_id),
            "reference": self._decision(prompt, self.reference, (), f"past-{prompt.logged.id}"),
            "served": prompt.served,
            "read": read,
            "written": written,
            "reference_read": reference.tokens.count(asked),
            "reference_written": reference.tokens.count(prompt.logged.response),
        }

    def _decision(
        self, prompt: _Prompt, llm: str, used: Sequence[Selected], request_id: str
    ) -> dict[str, Any]:
        # The record of a selection is one of the router's making, as long as nobody names the LLM.
        x, choice = self.policy.force(replace(prompt.request, llm=llm), prompt.context)
        revision = self.endpoints[llm].settings.revision
        parts = (prompt.request, prompt.context, x, choice, used, revision)
        return describe(decision_record(request_id, *parts))

    async def _judged(self, prompt: _Prompt, pair: Pair) -> Pair:
        logged = prompt.logged
        judging = judged(self.judge, logged.request, pair.answer, logged.response)
        try:
            result = await asyncio.wait_for(judging, self.settings.judging.timeout_s)
        except EchoError:
            raise
        except asyncio.TimeoutError:
            raise
        except Exception as error:  # a defect of a grader
            raise UnavailableError(f"judge {self.judge.kind}: {error!r}") from error
        # Neither answer was drawn by the router for a caller.
        sides = [JudgedAnswer(pair.body[name], asked=True) for name in ("candidate", "reference")]
        why = {"reason": "past", "probability": 0.0, "tokens": result.tokens, "seconds": 0.0}
        body = {
            **pair.body,
            "share": result.share(self.judge),
            "events": judged_events(self.judge, result, sides[0], sides[1], why),
            "judge_tokens": result.tokens,
        }
        judged_pair = Pair(pair.key, JUDGED, "", body)
        self._keep(judged_pair)
        self.budget.pay("judge", *self._judge_tokens(body["judge_tokens"]))
        self.counts["judged" if body["events"] else "no preference"] += 1
        return judged_pair

    def _judge_tokens(self, tokens: int) -> tuple[int, int]:
        """What the judge read and wrote, at most, of so many tokens."""
        written = min(tokens, 2 * self.settings.judging.max_judgement_tokens)
        return tokens - written, written

    def _learnt(self, pair: Pair) -> None:
        for kind, event in pair.body["events"]:
            self.log.append(kind, event)
        # What was learnt is in the learning log now.
        body = {name: value for name, value in pair.body.items() if name != "events"}
        self._keep(Pair(pair.key, LEARNT, "", body))

    def served(self, sample: Sequence[Logged]) -> list[ServedPairs]:
        """What is known of the sample's answers as the router would have asked for them."""
        found = []
        for logged in sample:
            pairs = [self.state.pair(key) for key in self._keys(logged)]
            bodies = {p.key.llm: p.body for p in pairs if p is not None and p.body.get("served")}
            found.append(ServedPairs(logged.id, bodies))
        return found

    def recall(self) -> None:
        """Count what earlier runs on this log have spent."""
        for pair in self.state.spent(self.fingerprint):
            if "read" in pair.body:
                self.budget.pay(pair.key.llm, pair.body["read"], pair.body["written"])
            if "judge_tokens" in pair.body:
                self.budget.pay("judge", *self._judge_tokens(pair.body["judge_tokens"]))
