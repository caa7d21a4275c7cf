#!/usr/bin/env python3
"""Compare eviction policies: how much a store capped at a share of its size still offloads.

A simulation without LLMs: a request counts as offloaded if the store has an example of its
intent, which is what the demo workload's small LLM needs. A past is stored as it comes, each
policy making room as it must; then new requests of the same stream are counted. Times of the
past are spread over --days. EchoLM's policy is the real one, with its statistics and real
embeddings, which say which examples fit the same requests. The utility model is assumed to find
examples of the request's intent useful with a probability drawn for each from --utility, and no
others; "equal shares" divides each offload among its examples instead, as if others were of no account, and "no
neighbours" evicts by value per byte alone. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.examples.maintenance import choose_victims
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import Event
from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm.store.base import FRESH_VALUE, Example
from echolm_lab.tasks import WorkItem, Workload
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

_START_MS = 1_790_000_000_000
_PER_PROMPT = 2
RANKS = ("lru", "lfu", "random")
POLICIES = (
    *("full store", "echolm", "echolm, no neighbours", "echolm, equal shares"),
    *("echolm, equal shares, no neighbours", *RANKS),
)
_NEIGHBOURS = 8
_EMBED = 1_000


class Policy(Protocol):
    """Chooses what goes. Ids ascend in time."""

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
    """EchoLM's own: its statistics, told the same events as in a server."""

    def __init__(
        self,
        directory: Path,
        neighbours: Callable[[int], Collection[int]] | None = None,
        equal_shares: bool = False,
    ) -> None:
        """
        Args:
            neighbours: ids of the stored examples that fit the same requests as one; None
                evicts by value per byte alone.
            equal_shares: of each offload among its examples, whatever others would do.
        """
        directory.mkdir()
        self._spread = neighbours is not None
        self._equal_shares = equal_shares
        self._neighbours = neighbours or (lambda i: ())
        self.now_ms = _START_MS
        self._statistics = StatisticsTable(
            directory / "statistics.sqlite", {"small_llm": 0.1}, now_ms=lambda: self.now_ms
        )
        self._events: list[Event] = []

    def _tell(self, kind: str, body: dict[str, Any], at_ms: int) -> None:
        self._events.append(Event(str(len(self._events) + 1), kind, body, at_ms))

    def stored(self, example: Example, help_probability: float, at_ms: int) -> None:
        value = FRESH_VALUE * (1.0 if self._equal_shares else 1.0 - help_probability)
        self._tell(CHANGE, change([dataclasses.replace(example, value=value)]), at_ms)

    def used(self, ids: list[int], credits: list[float], at_ms: int) -> None:
        if self._equal_shares:
            credits = [1.0 / len(ids)] * len(ids)
        uses = {i: (1, credit, 0.0) for i, credit in zip(ids, credits, strict=True)}
        self._tell(USAGE, usage(uses), at_ms)

    def victims(self, num_bytes: int) -> list[int]:
        self._statistics.follow(self)  # type: ignore[arg-type]
        choice = 8 * num_bytes if self._spread else num_bytes
        accounts = self._statistics.least_worth(0, choice, 1_000_000)

        def neighbours(ids: Sequence[int]) -> dict[int, Collection[int]]:
            return {i: self._neighbours(i) for i in ids} if self._spread else {}

        chosen = choose_victims(accounts, neighbours, 0, num_bytes, 1_000_000)
        self._tell(CHANGE, change(removed=chosen, reason="evicted"), self.now_ms)
        return chosen

    def read(self, after: str, limit: int) -> list[Event]:
        """As of a learning log."""
        first = int(after or 0)
        return self._events[first : first + limit]


class Contents:
    """What is in a store: its examples by intent, and the other way round.

    Args:
        embeddings: of the requests, FP32 [n, D]; that of example i stands in row i - 1.
        fit: cosine from which an example fits a request.
    """

    def __init__(self, embeddings: NDArray[np.float32], fit: float) -> None:
        self.by_intent: dict[str, list[int]] = defaultdict(list)
        self.intent_of: dict[int, str] = {}
        self._embeddings = embeddings
        self._fit = fit

    def neighbours(self, i: int) -> list[int]:
        """Others that fit its request, as far as embeddings tell, the nearest ones."""
        stored = np.fromiter(self.intent_of, dtype=np.int64)
        cosines = self._embeddings[stored - 1] @ self._embeddings[i - 1]
        nearest = np.argsort(-cosines)[:_NEIGHBOURS]
        return [int(stored[k]) for k in nearest if stored[k] != i and cosines[k] >= self._fit]


def offloaded(
    past: list[WorkItem],
    new: list[WorkItem],
    policy: Policy | None,
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
        found = by_intent[item.intent_id]
        uncovered = math.prod(1.0 - utilities[i] for i in found)
        if found and policy is not None:
            ids = rng.sample(found, min(_PER_PROMPT, len(found)))
            shares = [utilities[i] * uncovered / (1.0 - utilities[i]) for i in ids]
            policy.used(ids, shares, at_ms)
        example = Example(number, item.text, item.answer, "t", 1, "large_llm", 0.95, at_ms, at_ms)
        found.append(number)
        utilities[number] = rng.uniform(*utility)
        intent_of[number], sizes[number] = item.intent_id, example.num_bytes
        total += example.num_bytes
        if policy is None:
            continue
        policy.stored(example, 1.0 - uncovered, at_ms)
        if total > capacity:
            if isinstance(policy, ValueDensity):
                policy.now_ms = at_ms
            for i in policy.victims(total - int(0.95 * capacity)):
                by_intent[intent_of.pop(i)].remove(i)
                total -= sizes.pop(i)
    return float(np.mean([bool(by_intent[item.intent_id]) for item in new]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--past", type=int, default=20_000, help="interactions stored one by one")
    parser.add_argument("--requests", type=int, default=4_000, help="new ones that are counted")
    parser.add_argument("--share", type=float, default=0.05, help="of the full store's bytes")
    parser.add_argument("--days", type=float, default=7.0, help="that the past takes")
    parser.add_argument(
        "--utility",
        type=float,
        nargs=2,
        default=(0.7, 0.99),
        metavar=("LEAST", "MOST"),
        help="of examples of the request's intent, below 1",
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    console = Console(stderr=True)
    settings = load_settings()
    prepare_embedder(settings, console.print)
    rows: dict[str, list[float]] = defaultdict(list)
    for seed in range(1, options.seeds + 1):
        console.print(f"seed {seed}")
        stream = Workload(seed=0).stream(options.past + options.requests, seed=seed)
        past, new = stream[: options.past], stream[options.past :]
        size = sum(len(i.text.encode()) + len(i.answer.encode()) for i in past)
        with tempfile.TemporaryDirectory() as directory:
            embed = TextEmbedder(settings.embedding)
            batches = range(0, len(past), _EMBED)
            embeddings = np.concatenate(
                [
                    embed([item.text for item in past[k : k + _EMBED]])
                    for k in track(batches, description="  embedding", transient=True)
                ]
            )

            empty = functools.partial(Contents, embeddings, settings.routing.similarity_saturation)
            work = Path(directory)

            def own_policy(name: str, contents: Contents, work: Path = work) -> Policy:
                near = None if "no neighbours" in name else contents.neighbours
                return ValueDensity(work / name, near, "equal shares" in name)

            for name in POLICIES:
                contents = empty()
                policy: Policy | None = None
                if name in RANKS:
                    policy = ByRank(name, Random(seed))
                elif name != "full store":
                    policy = own_policy(name, contents)
                capacity = options.share * size
                rest = (capacity, options.days, options.utility, Random(seed))
                rows[name].append(offloaded(past, new, policy, contents, *rest))
    full = np.array(rows["full store"])
    print(f"{options.past} past interactions, store capped at {options.share:.0%} of their bytes")
    report = {}
    for name, shares in rows.items():
        kept = np.array(shares) / full
        report[name] = {"offloaded": float(np.mean(shares)), "kept": float(kept.mean())}
        print(
            f"  {name:36} offloaded {np.mean(shares):6.1%}   of the full store's "
            f"{kept.mean():.3f} ± {kept.std():.3f}"
        )
    print(json.dumps({"past": options.past, "share": options.share, "policies": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
