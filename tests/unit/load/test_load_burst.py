"""A burst of requests before two simulated LLMs: the bias takes load off the large one, in time.

Requests differ in how well the small LLM would do. Two models of the hardware: LLMs with slots
of their own and a queue each, and LLMs that share one machine's time.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pytest
from echolm.bandit.arms import LogisticArm
from echolm.bandit.thompson import ThompsonSampling
from echolm.learning.logistic import GaussianWeights, sigmoid
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.settings import LLMSettings, Settings

LARGE_RATE = 16.0  # requests/s that the large LLM can serve: always_large's capacity
CALM, BURST = 0.7 * LARGE_RATE, 3.0 * LARGE_RATE
BURST_AT, BURST_END, END = 60.0, 120.0, 200.0
SECONDS = {"small": 0.4, "large": 2.0}  # of service without a queue
WORK = {"small": 1 / 57.0, "large": 1 / LARGE_RATE}  # seconds of a whole machine, if shared
CAPACITY = {"small": 32.0, "large": 32.0}


class Slots:
    """Hardware of its own for each LLM: so many requests at once, the rest in a queue."""

    def __init__(self) -> None:
        self._free = {llm: int(n) for llm, n in CAPACITY.items()}
        self._queue: dict[str, list[int]] = {llm: [] for llm in CAPACITY}
        self._running: list[tuple[float, int, str]] = []

    def begin(self, now: float, request: int, llm: str) -> None:
        self._queue[llm].append(request)
        self._start(now, llm)

    def _start(self, now: float, llm: str) -> None:
        while self._free[llm] and self._queue[llm]:
            self._free[llm] -= 1
            request = self._queue[llm].pop(0)
            heapq.heappush(self._running, (now + SECONDS[llm], request, llm))

    def next_end(self, now: float) -> float:
        return self._running[0][0] if self._running else np.inf

    def end(self, now: float) -> int:
        _, request, llm = heapq.heappop(self._running)
        self._free[llm] += 1
        self._start(now, llm)
        return request


class Shared:
    """One machine: all requests in flight share its time, so each slows all others down."""

    def __init__(self) -> None:
        self._served = 0.0  # seconds of work that each request in flight has got
        self._at = 0.0
        self._running: list[tuple[float, int]] = []

    def _advance(self, now: float) -> None:
        if self._running:
            self._served += (now - self._at) / len(self._running)
        self._at = now

    def begin(self, now: float, request: int, llm: str) -> None:
        self._advance(now)
        heapq.heappush(self._running, (self._served + WORK[llm], request))

    def next_end(self, now: float) -> float:
        if not self._running:
            return np.inf
        return self._at + (self._running[0][0] - self._served) * len(self._running)

    def end(self, now: float) -> int:
        self._advance(now)
        return heapq.heappop(self._running)[1]


@dataclass(frozen=True)
class Run:
    """What happened, per request in order of arrival.

    Attributes:
        at, latency: seconds; small: whether the small LLM answered; quality: expected one.
        biases: (time, the large LLM's bias) at every arrival.
    """

    at: np.ndarray  # type: ignore[type-arg]
    latency: np.ndarray  # type: ignore[type-arg]
    small: np.ndarray  # type: ignore[type-arg]
    quality: np.ndarray  # type: ignore[type-arg]
    bias: np.ndarray  # type: ignore[type-arg]

    def between(self, start: float, end: float) -> Run:
        inside = (self.at >= start) & (self.at < end)
        return Run(*(v[inside] for v in vars(self).values()))

    @property
    def p99(self) -> float:
        return float(np.quantile(self.latency, 0.99))


# Log-odds of the quality: at relevance 0, and what relevance 1 adds.
LOG_ODDS = {"small": (-0.8, 3.4), "large": (3.5, 0.0)}


def quality(llm: str, relevance: float) -> float:
    at_least, added = LOG_ODDS[llm]
    return sigmoid(at_least + added * relevance)


def simulate(
    hardware: Slots | Shared,
    seed: int,
    **routing_settings: float,
) -> Run:
    """Serve the arrivals.

    Args:
        routing_settings: what differs in the section ``routing`` from the default, and from
            a bias that is large enough for the poorest of these requests and keeps queues short.
    """
    pools = ("", "") if isinstance(hardware, Shared) else ("one", "two")
    llms = tuple(
        LLMSettings(name=n, cost=c, takes_examples=False, capacity=CAPACITY[n], pool=pool)
        for n, c, pool in (("small", 0.1, pools[0]), ("large", 1.0, pools[1]))
    )
    settings = Settings(llms=llms, routing={"load_bias": 0.8, "load_gain": 1.0, **routing_settings})
    arms = {
        # x = (1, relevance), learnt well.
        n: LogisticArm(GaussianWeights.independent(np.array(known), np.full(2, 0.03)), 1e9, 20.0)
        for n, known in LOG_ODDS.items()
    }
    costs, routing = {llm.name: llm.cost for llm in llms}, settings.routing
    bandit = ThompsonSampling(
        arms, costs, routing.cost_weight, routing.exploration_floor, routing.exploration
    )
    now = 0.0
    load = LoadTracker(routing.load_half_life_s, clock=lambda: now)
    bias = LoadBias(routing, llms, load)
    rng = np.random.default_rng(seed)
    rows: list[list[float]] = []
    open_: dict[int, AbstractContextManager[None]] = {}
    arrival = rng.exponential(1 / CALM)
    while arrival < END or open_:
        ending = hardware.next_end(now)
        if ending <= arrival:
            now = ending
            request = hardware.end(now)
            open_.pop(request).__exit__(None, None, None)
            rows[request][1] = now - rows[request][0]
            continue
        now = arrival
        relevance = float(rng.beta(0.8, 0.5))
        biases = bias()
        llm = bandit.choose(np.array([1.0, relevance]), biases, rng).arm
        request = len(rows)
        rows.append([now, np.nan, llm == "small", quality(llm, relevance), biases["large"]])
        open_[request] = load.serving(llm)
        open_[request].__enter__()
        hardware.begin(now, request, llm)
        rate = BURST if BURST_AT <= now < BURST_END else CALM
        arrival = now + rng.exponential(1 / rate)
        if arrival >= END:
            arrival = np.inf
    return Run(*np.array(rows).T)


HARDWARE: Sequence[Callable[[], Slots | Shared]] = (Slots, Shared)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hardware", HARDWARE)
def test_offload_rises_with_a_burst_and_returns(
    hardware: Callable[[], Slots | Shared], seed: int
) -> None:
    run = simulate(hardware(), seed)
    assert not np.isnan(run.latency).any()  # none is lost
    calm = run.between(20, BURST_AT)
    soon = run.between(BURST_AT + 10, BURST_AT + 20)
    burst = run.between(BURST_AT + 10, BURST_END)
    after = run.between(BURST_END + 30, END)
    assert soon.small.mean() > calm.small.mean() + 0.25
    assert burst.small.mean() > calm.small.mean() + 0.25
    assert after.small.mean() == pytest.approx(calm.small.mean(), abs=0.08)
    assert after.p99 < 1.5 * calm.p99
    # In calm, quality is what it is without any bias.
    assert calm.bias.max() == after.bias.max() == 0
    # Neither is starved: where the large LLM has its own hardware it keeps all its slots busy.
    assert 0.02 < burst.small.mean() < 0.98
    if hardware is Slots:
        to_large = (1 - burst.small).sum() / (BURST_END - BURST_AT - 10)
        assert to_large == pytest.approx(LARGE_RATE, rel=0.1)
        assert burst.p99 < 3 * calm.p99
    # The bias lasts as long as the overload does, which makes it a signal to scale by.
    assert burst.bias.mean() > 0.2


@pytest.mark.parametrize("hardware", HARDWARE)
def test_without_the_bias_the_queue_outlives_the_burst(
    hardware: Callable[[], Slots | Shared],
) -> None:
    run = simulate(hardware(), 0, load_bias=0.0)
    assert run.between(BURST_AT + 10, BURST_END).p99 > 10 * run.between(20, BURST_AT).p99
    after = run.between(BURST_END + 30, END)
    assert after.p99 > 10 * run.between(20, BURST_AT).p99


def test_a_queue_at_a_small_llm_of_its_own_drives_nothing_off_an_idle_large_one() -> None:
    settings = Settings(
        llms=tuple(
            LLMSettings(name=n, cost=c, takes_examples=False, capacity=32, pool=n)
            for n, c in (("small", 0.1), ("large", 1.0))
        )
    )
    now = 0.0
    load = LoadTracker(1.0, clock=lambda: now)
    for _ in range(200):
        load.change("small", +1)
    now += 60
    bias = LoadBias(settings.routing, settings.llms, load)
    assert bias.loads() == {"small": pytest.approx(200 / 32), "large": 0}
    assert bias()["large"] == 0 < bias()["small"]


def test_load_is_counted_in_capacities_and_shared_within_a_pool() -> None:
    llms = tuple(
        LLMSettings(name=n, cost=c, takes_examples=False, capacity=room, pool=pool)
        for n, c, room, pool in (("a", 1, 10, "x"), ("b", 4, 40, "x"), ("c", 2, 5, "y"))
    )
    now = 0.0
    load = LoadTracker(1.0, clock=lambda: now)
    for name, number in (("a", 5), ("b", 40), ("c", 4)):
        load.change(name, number)
    now += 100
    bias = LoadBias(Settings(llms=llms).routing, llms, load)
    assert bias.loads() == pytest.approx({"a": 1.5, "b": 1.5, "c": 0.8})
    found = bias()
    assert found["b"] == pytest.approx(4 * found["a"]) != 0
    assert found["c"] == 0
