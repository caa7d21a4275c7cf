from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from echolm.llm.tokens import EstimatedTokens
from echolm.settings import Settings
from echolm_lab.experiments.selection import Comparison
from echolm_lab.tasks.public_tasks import Pair, PublicTask, score_label
from numpy.typing import NDArray

TOPICS = 8
NEAR = np.random.default_rng(0).normal(size=(TOPICS, 16))


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    """Requests of a topic lie near each other."""
    rng = np.random.default_rng(len(texts))
    vectors = np.stack([NEAR[int(text.split()[1])] for text in texts])
    vectors = vectors + 0.3 * rng.normal(size=vectors.shape)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def task(n: int = 60) -> PublicTask:
    pairs = tuple((f"about {k % TOPICS} number {k}", f"label{k % TOPICS}") for k in range(2 * n))
    return PublicTask("labels", "Give the label.", 4, pairs[:n], pairs[n:], score_label)


def copying(asked: PublicTask, prompts: Sequence[tuple[Sequence[Pair], str]]) -> list[str]:
    """An LLM that repeats the last answer it was shown."""
    return [examples[-1][1] if examples else "nothing" for examples, _ in prompts]


def test_all_ways_answer_the_same_requests() -> None:
    comparison = Comparison(
        task(), Settings(), EstimatedTokens(), embed, copying, 1, learning=40, asked=20
    )
    scores = comparison.run()
    assert scores.means["alone"] == 0.0
    assert scores.means["nearest 1"] == scores.means["copy the nearest answer"] > 0.9
    assert scores.means["nearest 3"] == scores.means["nearest 1"]
    assert scores.means["random 3"] < 0.5
    for name in ("EchoLM at start", "EchoLM after learning"):
        assert scores.means[name] > 0.8
    assert len(scores.windows) == 1
    assert sum(scores.counts) == pytest.approx(1.0)


def test_a_prompt_is_asked_for_once() -> None:
    asked: list[tuple[Sequence[Pair], str]] = []

    def counting(one: PublicTask, prompts: Sequence[tuple[Sequence[Pair], str]]) -> list[str]:
        asked.extend(prompts)
        return copying(one, prompts)

    Comparison(
        task(), Settings(), EstimatedTokens(), embed, counting, 1, learning=20, asked=20
    ).run()
    assert len({(tuple(examples), request) for examples, request in asked}) == len(asked)


def test_too_few_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 99 requests, got 60"):
        Comparison(task(), Settings(), EstimatedTokens(), embed, copying, 1, learning=1, asked=99)
