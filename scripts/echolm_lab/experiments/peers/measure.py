"""Rounds of the same requests through every peer in turn, and their figures."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from echolm_lab.experiments.load import Run, closed_loop, open_loop, poisson_arrivals
from echolm_lab.experiments.peers.base import Connect, Peer, Running
from echolm_lab.experiments.peers.errors import PeerUnavailableError
from echolm_lab.experiments.peers.processes import ProcessTree, cpu_s
from echolm_lab.tasks import WorkItem, Workload

_SETTLE_S = 0.5
"""After a load, so that what a peer does after its answers is in its CPU time."""
_IDLE_S = 2.0
_SATURATED = 0.9
"""Share of its requests/s at saturation from which on a fixed rate is too much for a peer."""


@dataclass(frozen=True)
class Load:
    """What every peer gets.

    Attributes:
        history: sent once before the rounds: connections, code and caches are warm.
        saturating: of each round, sent with ``concurrency`` in flight.
        arriving: of each round, sent at ``arrivals_s``, seconds from the start.
    """

    history: Sequence[WorkItem]
    saturating: Sequence[Sequence[WorkItem]]
    arriving: Sequence[Sequence[WorkItem]]
    arrivals_s: Sequence[Sequence[float]]
    concurrency: int
    rate: float


def with_repeats(items: Sequence[WorkItem], share: float, seed: int) -> list[WorkItem]:
    """The stream in which a share of the requests is an earlier one, word for word."""
    rng, stream = Random(seed), list(items)
    for place in range(1, len(stream)):
        if rng.random() < share:
            stream[place] = stream[rng.randrange(place)]
    return stream


def load_of(
    rounds: int,
    requests: int,
    history: int,
    concurrency: int,
    rate: float,
    seconds: float,
    repeats: float,
    seed: int,
) -> Load:
    """Requests of the demo workload; nothing depends on the peer."""
    workload = Workload(seed=0)
    arriving = max(1, round(rate * seconds))
    live = workload.stream(rounds * (requests + arriving), seed=seed + 1, phase="live")
    stream = iter(with_repeats(live, repeats, seed))
    saturating, at_rate = [], []
    for _ in range(rounds):
        saturating.append([next(stream) for _ in range(requests)])
        at_rate.append([next(stream) for _ in range(arriving)])
    return Load(
        history=workload.stream(history, seed=seed + 2, phase="past"),
        saturating=saturating,
        arriving=at_rate,
        arrivals_s=[poisson_arrivals(arriving, rate, seed + number) for number in range(rounds)],
        concurrency=concurrency,
        rate=rate,
    )


@dataclass(frozen=True)
class Phase:
    """One load on one front.

    Attributes:
        core_ms: the peer's CPU time a request, by part.
        llm_core_ms, client_core_ms: the dummy LLM's server's and the load generator's.
        llm_calls: calls of the dummy LLM's server a request.
    """

    run: Run
    core_ms: Mapping[str, float]
    llm_core_ms: float
    client_core_ms: float
    llm_calls: float


@dataclass(frozen=True)
class Round:
    """One round of one front.

    Attributes:
        idle_share: CPU time of the peer while nothing is asked, in cores.
    """

    saturated: Phase
    at_rate: Phase
    memory_mib: float
    idle_share: float


@dataclass(frozen=True)
class LLMServer:
    """The dummy LLM that was started."""

    port: int
    tree: ProcessTree

    def calls(self) -> int:
        """Completions so far."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request("GET", "/calls")
        calls = json.loads(connection.getresponse().read())["calls"]
        connection.close()
        return int(calls)


async def warm_up(name: str, connect: Connect, load: Load) -> None:
    """The history, through one front.

    Raises:
        PeerUnavailableError: requests fail.
    """
    async with connect() as client:
        _succeeded(name, await closed_loop(client, load.history, load.concurrency))


async def measure_round(
    name: str, running: Running, connect: Connect, load: Load, number: int, llm: LLMServer
) -> Round:
    """A round of one front: saturated, then at the fixed rate.

    Raises:
        PeerUnavailableError: requests fail.
    """
    items, due = load.arriving[number], load.arrivals_s[number]
    before_s = sum(cpu_s(running.parts).values())
    await asyncio.sleep(_IDLE_S)
    idle_share = (sum(cpu_s(running.parts).values()) - before_s) / _IDLE_S
    async with connect() as client:
        # A first request opens what the peer has closed meanwhile.
        _succeeded(name, await closed_loop(client, load.saturating[number][:1], 1))
        before = _Counters.now(running, llm)
        run = await closed_loop(client, load.saturating[number], load.concurrency)
        _succeeded(name, run)
        saturated = await before.phase(run, running, llm)
        before = _Counters.now(running, llm)
        run = await open_loop(client, items, due)
        _succeeded(name, run)
        at_rate = await before.phase(run, running, llm)
    memory_mib = sum(tree.memory_mib() for tree in running.parts.values())
    return Round(saturated, at_rate, memory_mib, idle_share)


@dataclass(frozen=True)
class _Counters:
    """What has been used so far."""

    parts: Mapping[str, float]
    llm_s: float
    client_s: float
    calls: int

    @classmethod
    def now(cls, running: Running, llm: LLMServer) -> _Counters:
        return cls(cpu_s(running.parts), llm.tree.cpu_s(), time.process_time(), llm.calls())

    async def phase(self, run: Run, running: Running, llm: LLMServer) -> Phase:
        client_s = time.process_time()
        await asyncio.sleep(_SETTLE_S)
        now, ms = self.now(running, llm), 1e3 / len(run.records)
        return Phase(
            run=run,
            core_ms={name: (now.parts[name] - self.parts[name]) * ms for name in self.parts},
            llm_core_ms=(now.llm_s - self.llm_s) * ms,
            client_core_ms=(client_s - self.client_s) * ms,
            llm_calls=(now.calls - self.calls) / len(run.records),
        )


def _succeeded(name: str, run: Run) -> None:
    if run.failed:
        first = next(record.error for record in run.records if record.reply is None)
        raise PeerUnavailableError(
            f"{name}: expected an answer to all of {len(run.records)} requests, got none to "
            f"{run.failed}; the first error: {first}"
        )


def figures_of(rounds: Sequence[Round], rate: float) -> dict[str, Any]:
    """Mean and spread (half of largest minus smallest) over the rounds, and the parts' means."""
    values = {
        "requests_per_s": [one.saturated.run.steady_throughput for one in rounds],
        "p50_ms": [one.at_rate.run.latency_quantile(0.5) * 1e3 for one in rounds],
        "p99_ms": [one.at_rate.run.latency_quantile(0.99) * 1e3 for one in rounds],
        "core_ms": [sum(one.saturated.core_ms.values()) for one in rounds],
        "core_ms_at_rate": [sum(one.at_rate.core_ms.values()) for one in rounds],
        "memory_mib": [one.memory_mib for one in rounds],
        "idle_percent": [one.idle_share * 100 for one in rounds],
        "llm_calls": [one.saturated.llm_calls for one in rounds],
        "saturated_p50_ms": [one.saturated.run.latency_quantile(0.5) * 1e3 for one in rounds],
        "saturated_p99_ms": [one.saturated.run.latency_quantile(0.99) * 1e3 for one in rounds],
        "llm_core_ms": [one.saturated.llm_core_ms for one in rounds],
        "client_core_ms": [one.saturated.client_core_ms for one in rounds],
    }
    figures: dict[str, Any] = {
        name: {"mean": float(np.mean(some)), "spread": float(np.ptp(some)) / 2}
        for name, some in values.items()
    }
    figures["parts_core_ms"] = {
        name: float(np.mean([one.saturated.core_ms[name] for one in rounds]))
        for name in rounds[0].saturated.core_ms
    }
    figures["overloaded"] = rate > _SATURATED * figures["requests_per_s"]["mean"]
    return figures


def results_of(
    peers: Sequence[Peer],
    running: Mapping[str, Running],
    missing: Mapping[str, str],
    rounds: Mapping[str, Sequence[Round]],
    rate: float,
) -> dict[str, dict[str, Any]]:
    """Facts and figures by front; of a peer that is missing its facts and why."""
    results: dict[str, dict[str, Any]] = {}
    for peer in peers:
        facts = {"version": peer.version, "licence": peer.licence, "does": peer.does}
        if peer.name in missing:
            results[peer.name] = {**facts, "missing": missing[peer.name]}
            continue
        for front in running[peer.name].fronts:
            figures = figures_of(rounds[front], rate)
            if running[peer.name].own_llm:
                del figures["llm_calls"], figures["llm_core_ms"]
            results[front] = {**facts, **figures}
    return results
