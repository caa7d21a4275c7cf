"""A simulated store that makes room: eviction policies, and what each of them keeps offloading."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.examples.maintenance import choose_victims
from echolm.examples.statistics import StatisticsTable
from echolm.store.base import FRESH_VALUE, Example
from echolm.testing.event_log import MemoryEventLog
from numpy.typing import NDArray
from rich.progress import track

from echolm_lab.tasks import WorkItem

_START_MS = 1_790_000_000_000
_PER_PROMPT = 2
RANKS = ("lru", "lfu", "random")
POLICIES = (
    *("full store", "echolm", "echolm, no neighbours", "echolm, equal shares"),
    *("echolm, equal shares, no neighbours", *RANKS),
)
_NEIGHBOURS = 8


class EvictionPolicy(Protocol):
    """Chooses which examples a store drops. Ids ascend in time."""

    def stored(self, example: Example, help_probability: float, at_ms: int) -> None: ...

    def used(self, ids: list[int], credits: list[float], at_ms: int) -> None: ...

    def victims(self, num_bytes: int) -> list[int]: ...


class ByRank:
    """Removes examples of the lowest rank: least recently or least frequently used, or any."""

    def __init__(self, kind: str, rng: Random) -> None:
        self._kind = kind
        self._rng = rng
        self._ranks: dict[int, tuple[float, int]] = {}
        self._sizes: dict[int, int] = {}

    def stored(self, example: Example, help_probability: float, at_ms: int) -> None:
        first = {"lru": at_ms, "lfu": 0.0, "random": self._rng.random()}[self._kind]
        self._ranks[example.id] = (first, example.id)
        self._sizes[example.id] = example.num_bytes

    def used(self, ids: list[int], credits: list[float], at_ms: int) -> None:
        for i in ids:
            rank, _ = self._ranks[i]
            if self._kind != "random":
                self._ranks[i] = (at_ms if self._kind == "lru" else rank + 1, i)

    def victims(self, num_bytes: int) -> list[int]:
        chosen: list[int] = []
        for i in sorted(self._ranks, key=self._ranks.__getitem__):
            if num_bytes <= 0:
                break
            num_bytes -= self._sizes.pop(i)
            del self._ranks[i]
            chosen.append(i)
        return chosen


class ValueDensity:
    """EchoLM's policy: its statistics, which follow the same events as in a server."""

    def __init__(
        self,
        directory: Path,
        neighbours: Callable[[int], Collection[int]] | None = None,
        equal_shares: bool = False,
    ) -> None:
        """
        Args:
            neighbours: ids of the stored examples that are relevant to the same requests as the
                given one; None evicts by value per byte alone.
            equal_shares: divide each offload equally among its examples.
        """
        directory.mkdir()
        self._spread = neighbours is not None
        self._equal_shares = equal_shares
        self._neighbours = neighbours or (lambda i: ())
        self.now_ms = _START_MS
        self._statistics = StatisticsTable(
            directory / "statistics.sqlite", {"small_llm": 0.1}, now_ms=lambda: self.now_ms
        )
        self._log = MemoryEventLog(now_ms=lambda: self.now_ms)

    def _record(self, kind: str, body: dict[str, Any], at_ms: int) -> None:
        self.now_ms = at_ms
        self._log.append(kind, body)

    def stored(self, example: Example, help_probability: float, at_ms: int) -> None:
        value = FRESH_VALUE * (1.0 if self._equal_shares else 1.0 - help_probability)
        self._record(CHANGE, change([dataclasses.replace(example, value=value)]), at_ms)

    def used(self, ids: list[int], credits: list[float], at_ms: int) -> None:
        if self._equal_shares:
            credits = [1.0 / len(ids)] * len(ids)
        uses = {i: (1, credit, 0.0) for i, credit in zip(ids, credits, strict=True)}
        self._record(USAGE, usage(uses), at_ms)

    def victims(self, num_bytes: int) -> list[int]:
        self._statistics.follow(self._log)
        choice = 8 * num_bytes if self._spread else num_bytes
        least_worth = self._statistics.least_worth(0, choice, 1_000_000)

        def neighbours(ids: Sequence[int]) -> dict[int, Collection[int]]:
            return {i: self._neighbours(i) for i in ids} if self._spread else {}

        chosen = choose_victims(least_worth, neighbours, 0, num_bytes, 1_000_000)
        self._record(CHANGE, change(removed=chosen, reason="evicted"), self.now_ms)
        return chosen


class Contents:
    """What is in a store: its examples by intent, and the other way round.

    Args:
        embeddings: embeddings of the requests, FP32 [n, D]; example i has row i - 1.
        relevance: cosine from which an example is relevant to a request.
    """

    def __init__(self, embeddings: NDArray[np.float32], relevance: float) -> None:
        self.by_intent: dict[int, list[int]] = defaultdict(list)
        self.intent_of: dict[int, int] = {}
        self._embeddings = embeddings
        self._relevance = relevance

    def neighbours(self, i: int) -> list[int]:
        """The nearest other examples whose requests are similar enough to its own."""
        stored = np.fromiter(self.intent_of, dtype=np.int64)
        cosines = self._embeddings[stored - 1] @ self._embeddings[i - 1]
        nearest = np.argsort(-cosines)[:_NEIGHBOURS]
        return [int(stored[k]) for k in nearest if stored[k] != i and cosines[k] >= self._relevance]


def offloaded(
    past: list[WorkItem],
    new: list[WorkItem],
    policy: EvictionPolicy | None,
    contents: Contents,
    capacity: float,
    days: float,
    utility: tuple[float, float],
    rng: Random,
) -> float:
    """Share of the new requests that find an example of their intent."""
    by_intent, intent_of = contents.by_intent, contents.intent_of
    sizes: dict[int, int] = {}
    utilities: dict[int, float] = {}
    total = 0
    for number, item in enumerate(track(past, description="  past", transient=True), start=1):
        at_ms = _START_MS + int(days * 86_400_000 * number / len(past))
        helpful = by_intent[item.intent_id]
        no_help = math.prod(1.0 - utilities[i] for i in helpful)
        if helpful and policy is not None:
            ids = rng.sample(helpful, min(_PER_PROMPT, len(helpful)))
            shares = [utilities[i] * no_help / (1.0 - utilities[i]) for i in ids]
            policy.used(ids, shares, at_ms)
        example = Example(number, item.text, item.answer, "t", 1, "large_llm", 0.95, at_ms, at_ms)
        helpful.append(number)
        utilities[number] = rng.uniform(*utility)
        intent_of[number], sizes[number] = item.intent_id, example.num_bytes
        total += example.num_bytes
        if policy is None:
            continue
        policy.stored(example, 1.0 - no_help, at_ms)
        if total > capacity:
            if isinstance(policy, ValueDensity):
                policy.now_ms = at_ms
            for i in policy.victims(total - int(0.95 * capacity)):
                by_intent[intent_of.pop(i)].remove(i)
                total -= sizes.pop(i)
    return float(np.mean([bool(by_intent[item.intent_id]) for item in new]))
