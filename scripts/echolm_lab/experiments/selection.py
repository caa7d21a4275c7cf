"""Ways to choose a request's examples, on public tasks with any LLM behind them.

The selection is the product's, in this process, and learns from the score of each answer; only the
search is a matrix product, which finds what a vector index would. No router chooses: every answer
is that of the one LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.learning.request_statistics import REQUEST_STATISTICS, fit
from echolm.llm.tokens import TokenCounter
from echolm.primitives import Candidate
from echolm.retrieval.selector import ExampleSelector, Selection
from echolm.settings import Settings
from echolm.wiring.retrieval import build_selector
from numpy.typing import NDArray

from echolm_lab.tasks.public_tasks import Pair, PublicTask

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to FP32 [n, D], unit length."""

Ask = Callable[[PublicTask, Sequence[tuple[Sequence[Pair], str]]], list[str]]
"""The LLM's answers to requests of a task, each after its examples, the last next to it."""

FIXED = (1, 3, 5)
_QUALITY = 0.95  # of examples that nobody has rated
_SAMPLE = 512  # texts by which it is told what cosines mean


@dataclass(frozen=True)
class Scores:
    """Mean scores of the ways to answer the same requests, by name.

    Attributes:
        windows: those of EchoLM less those of the nearest three, while it learns.
        counts: share of the last requests that got so many examples.
    """

    means: dict[str, float]
    windows: tuple[float, ...]
    counts: tuple[float, ...]


class Comparison:
    """One task, one LLM, one seed.

    Args:
        settings: EchoLM's.
        tokens: counts the tokens of examples.
        ask: the LLM; an answer to the same prompt is asked for once.
        learning, asked: requests that are rated, and then requests that are compared on.
        batch: requests that are answered at once, and rated before the next ones.
    """

    def __init__(
        self,
        task: PublicTask,
        settings: Settings,
        tokens: TokenCounter,
        embed: Embed,
        ask: Ask,
        seed: int,
        learning: int,
        asked: int,
        batch: int = 16,
    ) -> None:
        self._task, self._ask, self._seed, self._batch = task, ask, seed, batch
        self._most = settings.retrieval.max_examples
        self._llm = next(llm.name for llm in settings.llms if llm.takes_examples)
        self._requests = task.requests[: learning + asked]
        self._learning = len(self._requests) - asked
        if self._learning < 0 or not task.examples:
            raise ValueError(f"{task.name}: expected {asked} requests, got {len(task.requests)}")
        examples = embed([request for request, _ in task.examples])
        cosines = embed([request for request, _ in self._requests]) @ examples.T
        top_n = min(settings.retrieval.top_n, cosines.shape[1])
        nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :top_n]
        self._found = [
            [_candidate(k, task.examples, float(row[k])) for k in columns.tolist()]
            for row, columns in zip(cosines, nearest, strict=True)
        ]
        self._selector = self._untaught(settings, tokens, examples)
        self._known: dict[tuple[tuple[int, ...], int], str] = {}

    def _untaught(
        self, settings: Settings, tokens: TokenCounter, examples: NDArray[np.float32]
    ) -> ExampleSelector:
        selector = build_selector(
            settings, tokens, np.random.default_rng(self._seed), examples.shape[1]
        )
        similarities = np.array([row[0].similarity for row in self._found], np.float32)
        measured = fit(examples[:_SAMPLE], similarities, 1)
        event = Event("0", REQUEST_STATISTICS, measured.body(), 0)
        selector.newest_statistics.apply(event)
        return selector

    def run(self) -> Scores:
        """All ways to answer."""
        first = range(self._learning)
        later = range(self._learning, len(self._requests))
        most = self._most
        rng = np.random.default_rng([self._seed, 1])
        random = [rng.choice(len(self._task.examples), 3).tolist() for _ in later]
        chosen: dict[str, list[list[int]]] = {
            "alone": [[] for _ in later],
            "random 3": random,
            **{f"nearest {k}": [self._nearest(row, k) for row in later] for k in FIXED},
            "EchoLM at start": [_places(s) for s in self._select(later)],
        }
        means = {name: self._mean(later, places) for name, places in chosen.items()}
        copies = [self._score(row, self._found[row][0].response) for row in later]
        means["copy the nearest answer"] = float(np.mean(copies))
        gains = self._learn(first)
        learnt = [_places(s) for s in self._select(later)]
        means["EchoLM after learning"] = self._mean(later, learnt)
        counts = np.bincount([len(places) for places in learnt], minlength=most + 1) / len(later)
        return Scores(means, tuple(gains), tuple(counts.tolist()))

    def _nearest(self, row: int, k: int) -> list[int]:
        return [candidate.id - 1 for candidate in reversed(self._found[row][:k])]

    def _select(self, rows: Sequence[int]) -> list[Selection]:
        texts = [self._requests[row][0] for row in rows]
        return self._selector.select(texts, [self._found[row] for row in rows])

    def _learn(self, rows: Sequence[int], window: int = 200) -> list[float]:
        """Serve requests and rate each answer; how much better windows were than nearest 3."""
        models = [m for m in self._selector.learnables if m.name != "request_statistics"]
        gains: list[float] = []
        for start in range(0, len(rows), self._batch):
            part = rows[start : start + self._batch]
            selections = self._select(part)
            scores = self._scores(part, [_places(s) for s in selections])
            usual = self._scores(part, [self._nearest(row, 3) for row in part])
            gains += [a - b for a, b in zip(scores, usual, strict=True)]
            for row, selection, score in zip(part, selections, scores, strict=True):
                if selection.record is not None:
                    event = _rating(row, self._llm, selection, score)
                    for model in models:
                        model.apply(event)
        return [float(np.mean(gains[k : k + window])) for k in range(0, len(gains), window)]

    def _mean(self, rows: Sequence[int], places: Sequence[Sequence[int]]) -> float:
        return float(np.mean(self._scores(rows, places)))

    def _scores(self, rows: Sequence[int], places: Sequence[Sequence[int]]) -> list[float]:
        keys = [(tuple(some), row) for row, some in zip(rows, places, strict=True)]
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        prompts = [
            ([self._task.examples[k] for k in some], self._requests[row][0]) for some, row in new
        ]
        self._known.update(zip(new, self._ask(self._task, prompts) if new else [], strict=True))
        return [self._score(row, self._known[key]) for key, row in zip(keys, rows, strict=True)]

    def _score(self, row: int, answer: str) -> float:
        return self._task.score(answer, self._requests[row][1])


def _candidate(place: int, examples: Sequence[Pair], similarity: float) -> Candidate:
    request, response = examples[place]
    return Candidate(place + 1, request, response, "public", _QUALITY, similarity)


def _places(selection: Selection) -> list[int]:
    """Where the selected examples stand among the task's, in the order of the prompt."""
    return [example.id - 1 for example in selection.examples]


def _rating(row: int, llm: str, selection: Selection, score: float) -> Event:
    assert selection.record is not None
    body = {
        "request_id": f"request-{row}",
        "tenant": "public",
        "llm": llm,
        "context": [],
        "propensity": 1.0,
        "quality": 0.5,
        "example_ids": [example.id for example in selection.examples],
        "selection": selection.record.dump(),
        "score": score,
    }
    return Event(str(row), RATING, body, 1)
