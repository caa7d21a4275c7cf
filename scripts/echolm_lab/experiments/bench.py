"""What all experiments share: the past, servers made for one purpose, rated requests."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import echolm_client
import numpy as np
import tritonclient.grpc.aio as grpc_aio
from echolm.errors import ConfigurationError, UnavailableError
from echolm.judges.base import Judge
from echolm.load.tracker import LoadTracker
from echolm.serving.attach import attached
from echolm.serving.serve import Endpoints, ServeOptions, running_server
from echolm.settings import LLMSettings, Settings
from echolm.wiring.llms import build_endpoints, build_judge
from echolm.wiring.retrieval import open_store
from numpy.typing import NDArray
from rich.console import Console

from echolm_lab.experiments.load import Record, Run, closed_loop, open_loop, poisson_arrivals
from echolm_lab.experiments.signing import SigningClient
from echolm_lab.experiments.sizes import Sizes
from echolm_lab.experiments.store import fill
from echolm_lab.experiments.trace import rescaled
from echolm_lab.policies.base import DEFAULT_ASKING, AnswerPolicy, Asking, Reply
from echolm_lab.policies.llm import LLMPolicy
from echolm_lab.policies.nearest import NearestAnswers
from echolm_lab.policies.static_router import embedding
from echolm_lab.report.progress import Stage
from echolm_lab.tasks import Item, PastInteraction, WorkItem, Workload
from echolm_lab.tasks.past import WORKLOAD_SEED, past_items, recorded_past

Changes = Mapping[str, Mapping[str, Any]]
"""Settings to change: values by section and key."""

FLUSH_S = 2.0
"""Time in which the last interactions are written and the last ratings learnt."""


@dataclass(frozen=True)
class RatedRun:
    """Requests that were answered and partly rated, in the order in which they ended.

    Attributes:
        scores: of the answers; 0 for a request without an answer.
        ratings: ratings given before each answer came.
        offloaded: whether another than the large LLM answered.
        total: ratings given in all.
    """

    run: Run
    scores: tuple[float, ...]
    ratings: tuple[int, ...]
    offloaded: tuple[bool, ...]
    total: int


@dataclass(frozen=True)
class _ServedEmbedder:
    """The server's embedder, as judges want it."""

    grpc: grpc_aio.InferenceServerClient

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([await embedding(self.grpc, text) for text in texts])


@dataclass(frozen=True)
class Site:
    """One running server and ways to use it.

    Attributes:
        settings: what it runs with.
    """

    settings: Settings
    endpoints: Endpoints
    client: echolm_client.AsyncClient
    grpc: grpc_aio.InferenceServerClient
    console: Console
    concurrency: int
    nearest: NearestAnswers
    asking: Asking = DEFAULT_ASKING

    @property
    def large_llm(self) -> str:
        """Name of the large LLM."""
        return self.settings.strongest_llm.name

    @property
    def small_llm(self) -> str:
        """Name of the small LLM."""
        return min(self.settings.llms, key=lambda llm: llm.cost).name

    def llm(self, name: str, llm: str, cache_control: str) -> LLMPolicy:
        """An LLM, or ``auto``, as a policy of that name."""
        return LLMPolicy(name, self.client, llm, cache_control, self.asking)

    def large(self) -> LLMPolicy:
        """The large LLM alone."""
        return self.llm("always_large", self.large_llm, "no-cache")

    def small(self) -> LLMPolicy:
        """The small LLM alone."""
        return self.llm("always_small", self.small_llm, "no-cache")

    def small_with_examples(self, name: str = "similar_examples") -> LLMPolicy:
        """The small LLM with whatever examples the server chooses."""
        return self.llm(name, self.small_llm, "no-store")

    def echolm(self) -> LLMPolicy:
        """EchoLM's own choice."""
        return self.llm("echolm", "auto", "default")

    def judge(self) -> Judge:
        """The judge of the settings; ConfigurationError if there is none."""
        here = self.settings.model_copy(update={"grpc_url": self.endpoints.grpc_url})
        embedder = _ServedEmbedder(self.grpc)
        judge = build_judge(here, build_endpoints(here), embedder, LoadTracker())
        if judge is None:
            raise ConfigurationError(f"judge: {here.no_judge}")
        return judge

    async def store_answers_of_large(self, items: Sequence[Item]) -> int:
        """Let the large LLM answer, and wait until its answers are examples; gives their number.

        Answers that are cut short or refused do not become any.
        """
        policy = self.llm("past", self.large_llm, "no-examples")
        await self.answer(policy, items, "the large LLM answers past requests")
        await asyncio.sleep(FLUSH_S)
        while (stats := await self.client.stats()).value("echolm_examples_pending"):
            await asyncio.sleep(FLUSH_S)
        return int(stats.value("echolm_examples_stored"))

    async def answer(
        self,
        policy: AnswerPolicy,
        items: Sequence[Item],
        title: str = "",
        concurrency: int | None = None,
        limit_s: float = math.inf,
    ) -> Run:
        """All answers of a policy with the server full.

        Args:
            limit_s: after this nothing more is sent.

        Raises:
            UnavailableError: no request was answered.
        """
        title = title or f"{policy.name}"
        with Stage(self.console, title, len(items)) as stage:
            run = await closed_loop(
                policy, items, concurrency or self.concurrency, stage.step, limit_s
            )
        if run.failed == len(run.records):
            reason = run.records[0].error if run.records else "none was sent"
            raise UnavailableError(f"{title}: no request was answered: {reason}")
        return run

    async def steady(
        self,
        policy: AnswerPolicy,
        items: Sequence[Item],
        rate: float,
        seed: int,
        title: str = "",
    ) -> Run:
        """All answers of a policy under Poisson arrivals of a mean rate per second."""
        arrivals = poisson_arrivals(len(items), rate, seed)
        title = title or f"{policy.name} at {rate:.1f}/s"
        with Stage(self.console, title, len(items)) as stage:
            return await open_loop(policy, items, arrivals, stage.step)

    async def answer_and_rate(
        self,
        items: Sequence[Item],
        rule: Callable[[Reply], bool],
        title: str = "echolm answers and is rated",
        concurrency: int | None = None,
        limit_s: float = math.inf,
    ) -> RatedRun:
        """EchoLM's answers; those that ``rule`` chooses get their score as a rating."""
        ended: list[tuple[float, int, bool]] = []
        tasks: set[asyncio.Task[bool]] = set()

        with Stage(self.console, title, len(items)) as stage:

            def on_record(record: Record) -> None:
                stage.step()
                reply = record.reply
                if reply is None:
                    ended.append((0.0, len(tasks), False))
                    return
                score = record.item.score(reply.text)
                ended.append((score, len(tasks), reply.llm != self.large_llm))
                if rule(reply):
                    tasks.add(asyncio.create_task(self.client.rate(reply.feedback_token, score)))

            run = await closed_loop(
                self.echolm(), items, concurrency or self.concurrency, on_record, limit_s
            )
        await asyncio.gather(*tasks)
        await asyncio.sleep(FLUSH_S)
        scores, ratings, offloaded = zip(*ended, strict=True)
        return RatedRun(run, scores, ratings, offloaded, len(tasks))


@dataclass
class Bench:
    """One seed's experiments.

    Attributes:
        work_dir: emptied data directories of this run's servers.
        trace: arrival times in seconds; none: Poisson.
    """

    settings: Settings
    sizes: Sizes
    seed: int
    console: Console
    work_dir: Path
    trace: list[float] | None = None
    workload: Workload = field(default_factory=lambda: Workload(seed=WORKLOAD_SEED))
    _past: list[PastInteraction] = field(default_factory=list)

    def arrivals(self, count: int, rate: float, part: int = 0) -> list[float]:
        """Arrival times in seconds at a mean rate per second; ``part`` numbers the segments."""
        if self.trace is None:
            return poisson_arrivals(count, rate, 1_000 * self.seed + part)
        return rescaled(self.trace, count, rate, 7_919 * self.seed + 104_729 * part)

    def stream(self, count: int, part: int = 0, **mix: float | None) -> list[WorkItem]:
        """Live requests; other parts are other streams."""
        return self.workload.stream(count, seed=100 * self.seed + part + 1, phase="live", **mix)

    def past(self) -> list[PastInteraction]:
        """The large LLM's answers to past requests."""
        if self.sizes.past_is_right:
            return [PastInteraction(item, item.answer) for item in past_items(self.sizes.history)]
        if not self._past:
            self._past = recorded_past(self.sizes.history)
        return self._past

    def data_dir(self, name: str, interactions: Sequence[PastInteraction]) -> Path:
        """A new data directory whose store holds the interactions, with ids 1, 2, ..."""
        path = self.work_dir / f"seed-{self.seed}" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        if interactions:
            # Experiments start from few different stores, and filling one takes longer.
            key = hashlib.sha256(
                json.dumps([(e.item.text, e.response) for e in interactions]).encode()
            ).hexdigest()[:12]
            kept = self.work_dir / "stores" / key
            if not (kept / "full").exists():
                shutil.rmtree(kept, ignore_errors=True)
                kept.mkdir(parents=True)
                with Stage(self.console, "storing examples", len(interactions)) as stage:
                    fill(
                        self.settings.model_copy(update={"data_dir": kept}),
                        [(e.item.text, e.response) for e in interactions],
                        stage.step_by,
                    )
                (kept / "full").touch()
            shutil.copy(kept / "milvus.db", path / "milvus.db")
        return path

    @contextlib.asynccontextmanager
    async def serve(
        self,
        name: str,
        interactions: Sequence[PastInteraction],
        changes: Changes | None = None,
        *,
        llms: Sequence[Mapping[str, Any]] | None = None,
        repository: Path | None = None,
        data_dir: Path | None = None,
    ) -> AsyncIterator[Site]:
        """A server with settings of its own over a store of its own.

        Args:
            name: its data directory gets this name.
            interactions: what its store holds.
            llms: other LLMs than the configured ones.
            repository: other models than this checkout's.
            data_dir: one that a server has left, to go on with; then without ``interactions``.
        """
        directory = data_dir or self.data_dir(name, interactions)
        settings = changed(self.settings, changes or {}, directory, llms)
        options = ServeOptions(http_port=0, grpc_port=0, metrics_port=0, repository_root=repository)
        started = time.monotonic()
        with running_server(settings, options) as endpoints:
            self.console.print(f"server {name}: ready after {time.monotonic() - started:.0f} s")
            async with connected(settings, endpoints, self.console, self.sizes.concurrency) as site:
                await warm_up(site, self.stream(self.sizes.warm_up, part=9))
                yield site


@contextlib.asynccontextmanager
async def connected(
    settings: Settings,
    endpoints: Endpoints,
    console: Console,
    concurrency: int,
    asking: Asking = DEFAULT_ASKING,
) -> AsyncIterator[Site]:
    """A running server with clients, and its store."""
    grpc = SigningClient(endpoints.grpc_url, endpoints.data_dir)
    try:
        with attached(settings) as running, contextlib.closing(open_store(running)) as store:
            async with echolm_client.AsyncClient(
                endpoints.grpc_url, metrics_url=endpoints.metrics_url
            ) as client:
                nearest = NearestAnswers(grpc, store, asking.system_prompt)
                yield Site(settings, endpoints, client, grpc, console, concurrency, nearest, asking)
    finally:
        await grpc.close()


def changed(
    settings: Settings,
    changes: Changes,
    data_dir: Path,
    llms: Sequence[Mapping[str, Any]] | None = None,
) -> Settings:
    """The settings with some keys changed, validated."""
    update: dict[str, Any] = {"data_dir": data_dir}
    for section, values in changes.items():
        current = getattr(settings, section)
        update[section] = type(current).model_validate({**current.model_dump(), **values})
    if llms is not None:
        update["llms"] = tuple(LLMSettings.model_validate(llm) for llm in llms)
    return settings.model_copy(update=update)


async def warm_up(site: Site, items: Sequence[Item]) -> None:
    """Let both LLMs answer each item."""
    for policy in (site.large(), site.small()):
        await closed_loop(policy, items, len(items))
