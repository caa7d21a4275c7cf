"""A simulated world for the utility model: stored examples of the demo workload, some of them
corrupted, and an LLM that imitates what it is shown. Ratings are of whole answers, and noisy.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from echolm.learning.event_log import Event
from echolm.learning.feedback import PREFERENCE, RATING
from echolm.learning.request_statistics import RequestStatistics
from echolm.primitives import Candidate
from echolm.retrieval import features
from echolm.retrieval.features import ExampleTexts, FeatureBatch
from echolm.retrieval.record import SelectionRecord
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.utility import LearnedUtility
from echolm_lab.tasks import WorkItem, Workload
from numpy.typing import NDArray

WORKLOAD = Workload(seed=0)
SCALE = SimilarityScale.of(RequestStatistics.none())
LLMS = {"small_llm": 0.7, "large_llm": 0.8}
HALF_LIFE_MS = 3_600_000.0
_DIMENSION = 384


def featurize(
    requests: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    texts: ExampleTexts,
    min_similarity: float = -1.0,
) -> FeatureBatch:
    """The features before anything was measured of the service's requests."""
    return features.featurize(requests, candidates, texts, SCALE, min_similarity)


def untaught() -> LearnedUtility:
    return LearnedUtility(LLMS, HALF_LIFE_MS)


def embed(text: str) -> NDArray[np.float32]:
    """A bag of hashed words, unit length: about as good as a small sentence embedder."""
    out = np.zeros(_DIMENSION, dtype=np.float32)
    for word in text.lower().split():
        rng = np.random.default_rng(zlib.crc32(word.encode()))
        out += rng.standard_normal(_DIMENSION).astype(np.float32) * (0.4 if len(word) < 4 else 1.0)
    return out / float(np.linalg.norm(out))


def corrupt(answer: str, other: str, rng: Random) -> str:
    """An answer that misleads: another's, a truncated one, or one with wrong values."""
    kind = rng.randrange(3)
    if kind == 0:
        return other
    if kind == 1:
        return answer[: len(answer) // 3]
    words = answer.split(" ")
    for k in rng.sample(range(len(words)), max(1, len(words) // 2)):
        words[k] = "".join(rng.choice("abcdefghij0123456789") for _ in words[k])
    return " ".join(words)


@dataclass
class World:
    """Stored examples and what an LLM makes of them.

    Attributes:
        helps: whether the example with this id is sound.
        intents: what the example with this id asks for.
    """

    seed: int
    num_examples: int = 600
    corrupted: float = 0.2
    noise: float = 0.1
    helps: dict[int, bool] = field(default_factory=dict)
    intents: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)
        items = WORKLOAD.stream(self.num_examples, seed=1_000 + self.seed, lookalike=0.15)
        self._examples: list[tuple[int, WorkItem, str]] = []
        for k, item in enumerate(items):
            bad = self._rng.random() < self.corrupted
            answer = item.answer
            if bad:
                answer = corrupt(answer, self._rng.choice(items).answer, self._rng)
            self._examples.append((k + 1, item, answer))
            self.helps[k + 1], self.intents[k + 1] = not bad, item.intent_id
        self._vectors = np.stack([embed(item.text) for item in items])

    def requests(self, n: int, seed: int) -> list[WorkItem]:
        return WORKLOAD.stream(n, seed=10_000 + seed, lookalike=0.15)

    def search(self, text: str, top_n: int = 16) -> list[Candidate]:
        cosines = self._vectors @ embed(text)
        return [
            Candidate(i, item.text, answer, "public", 0.97, float(cosines[k]))
            for k in np.argsort(-cosines)[:top_n].tolist()
            for i, item, answer in [self._examples[k]]
        ]

    def helpful(self, item: WorkItem, example: int) -> bool:
        return self.helps[example] and self.intents[example] == item.intent_id

    def rate(self, item: WorkItem, used: list[int]) -> float:
        """A rating: the LLM follows one of its examples, rather a helpful one."""
        good = sum(self.helpful(item, i) for i in used)
        p = 0.15 if not used else 0.1 + 0.85 * (good / len(used)) ** 0.5
        p = (1 - self.noise) * p + self.noise / 2
        return float(self._rng.random() < p)


def answer(
    n: int, record: SelectionRecord | None, llm: str = "small_llm", id: str = ""
) -> dict[str, Any]:
    """The description of an answer."""
    return {
        "request_id": id or f"r{n}",
        "tenant": "public",
        "llm": llm,
        "context": [],
        "propensity": 1.0,
        "quality": 0.7,
        "example_ids": [] if record is None else list(record.ids),
        "selection": "" if record is None else record.dump(),
    }


def rating(
    n: int,
    record: SelectionRecord | None,
    score: float,
    llm: str = "small_llm",
    id: str = "",
    at_ms: int = 0,
    **more: Any,
) -> Event:
    return Event(str(n), RATING, {**answer(n, record, llm, id), "score": score, **more}, at_ms)


def preference(
    n: int, better: dict[str, Any], worse: dict[str, Any], share: float = 1.0, **more: Any
) -> Event:
    return Event(str(n), PREFERENCE, {"better": better, "worse": worse, "share": share, **more}, 0)


def auc(scores: list[float], labels: list[bool]) -> float:
    """Probability that a helpful one scores above a harmful one."""
    good = np.array([s for s, ok in zip(scores, labels, strict=True) if ok])
    bad = np.array([s for s, ok in zip(scores, labels, strict=True) if not ok])
    return float((good[:, None] > bad).mean() + 0.5 * (good[:, None] == bad).mean())
