"""Selection that learns from ratings, against nearest neighbours, where scores are far from 1.

The world is simulated, the selection is the product's: requests of some topics, stored examples of
which some are of the request's topic, and an LLM that scores .4 alone and about .6 with examples
that fit. Its true quality is compared, so that the ratings' noise is in the learning only.
"""

from __future__ import annotations

import numpy as np
import pytest
from echolm.learning.request_statistics import RequestStatistics
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Candidate
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.selector import ExampleSelector
from echolm.settings import Settings
from echolm.wiring.retrieval import build_selector
from selection_world import rating

TOPICS, EXAMPLES, CANDIDATES = 40, 30, 12
SCALE = SimilarityScale.of(RequestStatistics.none())


class HalfRight:
    """An LLM whose answers score about .4 without examples, and .6 with three that fit."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.topics: dict[int, int] = {}

    def candidates(self, topic: int) -> list[Candidate]:
        """The nearest examples: the nearer, the likelier they are of the request's topic."""
        found = []
        similarities = np.sort(self.rng.normal(0.68, 0.12, CANDIDATES))[::-1]
        for similarity in np.clip(similarities, SCALE.floor + 0.01, 0.99).tolist():
            fits = self.rng.random() < (similarity - 0.4) / 0.5
            of = topic if fits else int(self.rng.integers(TOPICS))
            id = of * EXAMPLES + int(self.rng.integers(EXAMPLES)) + 1
            self.topics[id] = of
            if all(c.id != id for c in found):
                text = f"please do task {id} of kind t{of}"
                found.append(
                    Candidate(id, text, f"tool run k{of} arg {id}", "public", 0.95, similarity)
                )
        return found

    def quality(self, topic: int, ids: list[int]) -> float:
        fitting = sum(self.topics[i] == topic for i in ids)
        return 0.4 + 0.25 * (1.0 - 0.4**fitting) - 0.02 * (len(ids) > 0 and not fitting)


class Distracted(HalfRight):
    """An LLM that each example makes worse."""

    def quality(self, topic: int, ids: list[int]) -> float:
        return 0.7 - 0.08 * len(ids)


class Voting(HalfRight):
    """An LLM that each example makes better, as where they are votes for a label."""

    def quality(self, topic: int, ids: list[int]) -> float:
        return 0.3 + 0.08 * len(ids)


def run(
    seed: int, n: int = 600, kind: type[HalfRight] = HalfRight
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How much better each answer is than with the nearest three examples."""
    world = kind(seed)
    selector: ExampleSelector = build_selector(
        Settings(), EstimatedTokens(), np.random.default_rng([seed, 1]), dimension=2
    )
    learning = [one for one in selector.learnables if one.name != "request_statistics"]
    gains = []
    for k in range(n):
        topic = int(world.rng.integers(TOPICS))
        found = world.candidates(topic)
        [selection] = selector.select([f"please do task {k + 5000} of kind t{topic}"], [found])
        good = world.quality(topic, [e.id for e in selection.examples])
        gains.append(good - world.quality(topic, [c.id for c in found[:3]]))
        score = float(np.clip(good + 0.3 * world.rng.standard_normal(), 0.0, 1.0))
        for one in learning:
            one.apply(rating(k, selection.record, score))
    return np.array(gains)


@pytest.fixture(scope="module")
def gains() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.stack([run(seed) for seed in range(4)])


def test_no_window_is_worse_than_nearest_neighbours(
    gains: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    windows = gains.reshape(len(gains), -1, 200).mean(axis=(0, 2))
    assert windows.min() > -0.01, windows


def test_what_was_learnt_makes_it_no_worse_than_at_the_start(
    gains: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    assert gains[:, -200:].mean() > gains[:, :200].mean() - 0.01


@pytest.mark.parametrize(("kind", "possible"), [(Distracted, 0.24), (Voting, 0.16)])
def test_the_learnt_number_is_better_than_three_where_another_one_is(
    kind: type[HalfRight], possible: float
) -> None:
    """At least two thirds of what another number gains are won in the end, in the mean of seeds."""
    runs = np.stack([run(seed, 400, kind) for seed in range(4)])
    assert abs(runs[:, :20].mean()) < possible / 3.0  # it begins with three
    assert runs[:, -200:].mean() > possible * 2.0 / 3.0
