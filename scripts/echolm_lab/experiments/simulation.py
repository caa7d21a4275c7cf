"""EchoLM without Triton and LLMs: the product's own parts in one process and simulated time.

Embedding, search, selection, routing, judging, admission and learning are the product's. Only the
LLMs are simulated (:mod:`echolm_lab.experiments.simulated_llms`), so that the true quality of every
answer is known, also of those that were not given.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from echolm.bandit.learning import BanditLearning
from echolm.conversation import readable
from echolm.embedding import tokenizer
from echolm.embedding.texts import TextEmbedder
from echolm.examples.admission import AdmissionPolicy
from echolm.examples.deduplication import DuplicateFinder, Finding
from echolm.judges.service import JudgingService
from echolm.learning.feedback import Feedback, FeedbackService
from echolm.learning.request_sample import RequestSample
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.primitives import Candidate, Interaction, Request, Retrieved, Sampling, Served
from echolm.retrieval.reuse import find_reusable
from echolm.retrieval.selector import ExampleSelector
from echolm.router.conversations import WarmConversations
from echolm.router.policy import Policy
from echolm.router.ports import AnswerObserver, Observers
from echolm.router.service import RouterService
from echolm.router.stored import answer_key_of
from echolm.router.warm_up import WarmUp
from echolm.settings import EmbeddingSettings, Settings
from echolm.store.base import Example, ExampleStore, Query, scope_key
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.front_door import FrontDoor
from echolm.testing.store import InMemoryStore
from echolm.wiring.learning import build_feedback_tokens, build_learner
from echolm.wiring.llms import build_endpoints, build_judge
from echolm.wiring.retrieval import build_selector, example_token_counter, unseen_share
from echolm.wiring.routing import build_bandit
from numpy.typing import NDArray
from pydantic import SecretStr

from echolm_lab.experiments.simulated_llms import JudgeSkill, SimulatedLLM, Skill, Truth
from echolm_lab.tasks.second_workload import LabelledRequest

_START_MS = 1_700_000_000_000
_PAST_QUALITY = 0.95  # what past answers of the large LLM are usually taken for


class CachedEmbedder:
    """The configured embedder; what it has embedded once is kept, in a file, too.

    Args:
        file: an ``.npz``; None: nothing outlasts the process.
    """

    def __init__(self, settings: EmbeddingSettings, file: Path | None = None) -> None:
        self._embed = TextEmbedder(settings)
        self._file = file
        self.name, self.dimension = self._embed.name, self._embed.dimension
        self._known: dict[bytes, NDArray[np.float32]] = {}
        if file is not None and file.is_file():
            with np.load(file) as saved:
                keys = saved["keys"].tobytes()
                split = [keys[k : k + 20] for k in range(0, len(keys), 20)]
                self._known = dict(zip(split, saved["vectors"], strict=True))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """FP32 [n, D], unit length."""
        made_by = f"{self.name} {tokenizer.WINDOW_VERSION}"
        keys = [hashlib.sha1(f"{made_by} {text}".encode()).digest() for text in texts]
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}
        if new:
            self._known.update(zip(new, self._embed(list(new.values())), strict=True))
        return np.stack([self._known[key] for key in keys])

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The same, as judges ask for it."""
        return self(texts)

    def save(self) -> None:
        """Write the file."""
        if self._file is not None and self._known:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            keys = np.frombuffer(b"".join(self._known), dtype=np.uint8)
            np.savez(self._file, keys=keys, vectors=np.stack(list(self._known.values())))


class MatrixStore(InMemoryStore):
    """The in-memory store with its search in one matrix product; nothing in it expires."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self._vectors = np.zeros((1_024, dimension), dtype=np.float32)
        self._ids: list[int] = []

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        known = self.rows.keys()
        assert not any(example.id in known for example in examples)
        super().upsert(examples, embeddings)
        while len(self._ids) + len(examples) > len(self._vectors):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._vectors[len(self._ids) : len(self._ids) + len(examples)] = embeddings
        self._ids += [example.id for example in examples]

    def search(
        self,
        embeddings: NDArray[np.float32],
        queries: Sequence[Query],
        top_n: int,
        now_ms: int,
        fresh: bool = False,
    ) -> list[list[Candidate]]:
        cosines = embeddings @ self._vectors[: len(self._ids)].T
        results = []
        for row, query in zip(cosines, queries, strict=True):
            near = np.arange(len(row))
            if len(row) > 2 * top_n:  # some of the nearest may be deleted, or of other scopes
                near = np.argpartition(-row, 2 * top_n)[: 2 * top_n]
            near = near[np.argsort(-row[near], kind="stable")]
            found = [(self.rows.get(self._ids[k]), float(row[k])) for k in near.tolist()]
            results.append(
                [
                    Candidate(
                        e.id, e.request, e.response, e.tenant, e.quality, cosine, e.answer_keys
                    )
                    for e, cosine in ((stored[0], c) for stored, c in found if stored)
                    if e.scope == query.scope
                ][:top_n]
            )
        return results


@dataclass(frozen=True)
class Record:
    """One request: what was done, and what would have come of all else.

    Attributes:
        llm: which LLM answered.
        right: whether its answer is.
        qualities: probability that an LLM's answer is right with the selected examples, by name.
        best: the same with the best examples that the store has for the request.
        predicted: what the router expects of each LLM, by name.
        known: whether the store has a right answer to the same intent.
        helped: whether one was selected.
        similarity: cosine of the best selected example; 0 if there is none.
        utility: of that which has most; 0 if there is none.
        examples: how many were selected.
        answer: what was answered.
        solicited: whether a rating was asked for.
    """

    item: LabelledRequest
    llm: str
    right: bool
    qualities: Mapping[str, float]
    best: Mapping[str, float]
    predicted: Mapping[str, float]
    known: bool
    helped: bool
    similarity: float
    utility: float
    examples: int
    solicited: bool
    answer: str


@dataclass
class _Retriever:
    """What the retriever's process does for a request; a ``testing.front_door.Retriever``."""

    simulation: Simulation

    async def retrieve(self, request: Request) -> Retrieved:
        s = self.simulation
        text = request.transcript
        embedding = s.embedder([text])
        query = Query.of(request.tenant, request.system_prompt)
        top_n = s.settings.retrieval.top_n
        found = s.store.search(embedding, [query], top_n, s.now_ms())
        selection = s.selector.select([text], found)[0]
        nearest = found[0][0].similarity if found[0] else math.nan
        s.sample.add([embedding[0]], [nearest], [len(text)])
        s.sample.log_if_due()
        return Retrieved(
            embedding[0],
            selection.examples,
            selection.help_probability,
            "" if selection.record is None else selection.record.dump(),
            reusable=find_reusable(text, answer_key_of(s.settings, request), found[0], s.unseen),
        )


@dataclass
class _Sink:
    """What the example manager does with an answer, at once."""

    settings: Settings
    store: ExampleStore
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._policy = AdmissionPolicy(self.settings)
        self._duplicates = DuplicateFinder(self.store)
        self._next_id = 1

    async def submit(self, interaction: Interaction) -> None:
        self.put([interaction])

    def put(self, interactions: Sequence[Interaction]) -> None:
        results = [self._policy.judge(interaction) for interaction in interactions]
        admitted = [r.interaction for r in results if r.interaction is not None]
        self.counts.update(r.reason or "admitted" for r in results)
        rows = []
        for one in admitted:
            scope = scope_key(one.tenant, one.system_prompt)
            texts = (one.request, one.response, one.tenant)
            example = Example(
                self._next_id,
                *texts,
                scope,
                one.llm,
                one.quality,
                0,
                0,
                answer_keys=one.answer_key,
            )
            rows.append((example, one.embedding))
            self._next_id += 1
        compared = self._duplicates.compare(rows, 0) if rows else []
        new = (Finding.NEW, Finding.BETTER)
        fresh = [row for row, c in zip(rows, compared, strict=True) if c.finding in new]
        self.counts.update(c.finding.value for c in compared)
        if fresh:
            self.store.upsert([e for e, _ in fresh], np.stack([v for _, v in fresh]))
        self.store.delete(c.known for c in compared if c.finding is Finding.BETTER)


@dataclass
class _Judgements:
    """Counts what the judge does."""

    counts: Counter[str] = field(default_factory=Counter)

    def judged(self, kind: str, reason: str, result: str, tokens: int, seconds: float) -> None:
        self.counts[f"{reason}: {result}"] += 1

    def warm_up_given_up(self, reason: str) -> None:
        self.counts[f"warm-up given up: {reason}"] += 1

    def both_orders(self, kind: str, consistent: bool) -> None: ...
    def rated(self, llm: str, score: float, predicted: float) -> None: ...
    def compared(self, llm: str, reason: str, share: float) -> None: ...


@dataclass
class _LastServed:
    """Keeps what was served last; an ``AnswerObserver``."""

    _served: Served | None = None

    def served(self, served: Served) -> None:
        self._served = served

    def take(self) -> Served:
        """What was served since this was called last."""
        served, self._served = self._served, None
        assert served is not None
        return served


class Simulation:
    """One service with its store, its LLMs and what it has learnt.

    Args:
        skills: of each LLM in ``settings.llms``, by name; may be replaced while it runs.
        rated: share of the answers that callers rate.
        asked: share of the ratings that are asked for which callers give.
        requests_per_s: in simulated time.
    """

    def __init__(
        self,
        settings: Settings,
        skills: Mapping[str, Skill],
        embedder: CachedEmbedder,
        seed: int,
        *,
        rated: float = 0.0,
        asked: float = 0.0,
        judging: JudgeSkill | None = None,
        requests_per_s: float = 1.0,
    ) -> None:
        feedback = settings.feedback.model_copy(update={"signing_key": SecretStr("simulation")})
        self.settings = settings = settings.model_copy(update={"feedback": feedback})
        self.embedder, self.truth = embedder, Truth()
        self.rated, self.asked = rated, asked
        self._step_ms = 1_000.0 / requests_per_s
        self._elapsed_ms = 0.0
        self._dice = random.Random(f"{seed} ratings")
        self.log = MemoryEventLog(self.now_ms)
        self.store = MatrixStore(embedder.dimension)
        rng = np.random.default_rng([seed, 1])
        self.unseen = unseen_share(settings)
        self.selector: ExampleSelector = build_selector(
            settings,
            example_token_counter(settings),
            rng,
            embedder.dimension,
            unseen=self.unseen,
        )
        newest = self.selector.newest_statistics
        self.sample = RequestSample(self.log, newest, "simulation", self.now_ms)
        self.llms = {
            name: SimulatedLLM(name, skill, self.truth, seed, judging or JudgeSkill())
            for name, skill in skills.items()
        }
        load = LoadTracker(settings.routing.load_half_life_s, lambda: self._elapsed_ms / 1_000)
        self.featurizer, self.bandit = build_bandit(settings)
        bias = LoadBias(settings.routing, settings.llms, load)
        self.judgements = _Judgements()
        warm_up = WarmUp(
            self.bandit,
            settings.reference_llm.name,
            settings.routing.warm_up_ratings,
            self.judgements.warm_up_given_up,
        )
        rng = np.random.default_rng([seed, 2])
        conversations = WarmConversations(settings.routing.prefix_price)
        policy = Policy(self.featurizer, self.bandit, bias, rng, warm_up, conversations)
        endpoints = build_endpoints(settings, self.llms)
        self.sink = _Sink(settings, self.store)
        self._last = _LastServed()
        observers: list[AnswerObserver] = [self._last]
        judge = build_judge(settings, endpoints, embedder, load)
        self.judging: JudgingService | None = None
        if judge is None:
            warm_up.give_up("no_judge", "nothing judges")
        else:
            rest = (self.log, self.judgements, warm_up, random.Random(f"{seed} judging"))
            self.judging = JudgingService(settings, judge, endpoints, policy, load, *rest)
            observers.append(self.judging)
        tokens = build_feedback_tokens(settings)
        service = RouterService(
            settings,
            endpoints,
            policy,
            tokens,
            self.sink,
            load,
            observer=Observers(observers),
            conversations=conversations,
        )
        self.front_door = FrontDoor(service, _Retriever(self))
        self._feedback = FeedbackService(tokens, self.log)
        bandit = BanditLearning(self.bandit, self.featurizer)
        self.learners = [
            build_learner(settings, self.log, learnables)
            for learnables in ([bandit], self.selector.learnables)
        ]

    def now_ms(self) -> int:
        """Simulated time."""
        return _START_MS + int(self._elapsed_ms)

    def fill(self, items: Sequence[LabelledRequest]) -> None:
        """Store the strongest LLM's answers of a past."""
        self.truth.add(items)
        name = self.settings.strongest_llm.name
        rows = []
        texts = [item.transcript for item in items]
        key = answer_key_of(self.settings, request_of(items[0])) if items else ""
        for item, text, embedding in zip(items, texts, self.embedder(texts), strict=True):
            answer = self.llms[name].answer(item, [])
            past = (embedding, "public", "", name, "stop", _PAST_QUALITY)
            rows.append(Interaction(text, answer, *past, answer_key=key))
        for start in range(0, len(rows), 64):
            self.sink.put(rows[start : start + 64])

    async def serve(self, items: Sequence[LabelledRequest]) -> list[Record]:
        """Answer requests, one after the other."""
        self.truth.add(items)
        self.embedder([item.transcript for item in items])
        known = {self.truth.answers.get(e.response, -1) for e, _ in self.store.rows.values()}
        records = []
        for item in items:
            self._elapsed_ms += self._step_ms
            answer = await self.front_door.answer(request_of(item))
            served = self._last.take()
            await self._settle()
            right = self.truth.is_right(readable(item.transcript), answer.text)
            share = self.asked if answer.solicit_feedback else 0.0
            if self._dice.random() < max(self.rated, share):
                self._feedback.accept([Feedback(answer.feedback_token, float(right))])
            records.append(self._record(item, served, right, item.intent in known))
            if right and answer.llm in self.settings.example_sources:
                known.add(item.intent)
            for learner in self.learners:
                learner.catch_up()
        return records

    async def _settle(self) -> None:
        """Wait for what runs on after an answer."""
        while tasks := [
            *self.front_door.service.background,
            *(self.judging.tasks if self.judging else ()),
        ]:
            await asyncio.wait(tasks)
            await asyncio.sleep(0)

    def _record(self, item: LabelledRequest, served: Served, right: bool, known: bool) -> Record:
        examples = served.retrieved.examples
        helped = any(self.truth.answers.get(e.response) == item.intent for e in examples)
        takes = {llm.name: llm.takes_examples for llm in self.settings.llms}
        with_selected, with_best = (
            {
                name: llm.skill.probability(item, takes[name] and some)
                for name, llm in self.llms.items()
            }
            for some in (helped, known)
        )
        predicted = self.bandit.qualities(served.x[None])[0].tolist()
        return Record(
            item,
            served.decision.llm,
            right,
            with_selected,
            with_best,
            dict(zip(self.bandit.arms, predicted, strict=True)),
            known,
            helped,
            max([e.similarity for e in examples], default=0.0),
            max([e.utility for e in examples], default=0.0),
            len(examples),
            bool(served.decision.solicited),
            served.text,
        )


def request_of(item: LabelledRequest) -> Request:
    """What a caller sends."""
    return Request(item.text, Sampling(max_tokens=128), history=item.history)
