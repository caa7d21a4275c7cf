#!/usr/bin/env python3
"""Measure the decision: utility scoring, selection and routing of a batch, in CPU time.

Every request of the batch has the same number of candidates, all of them eligible, from the
demo workload, made anew for each batch as a store gives them; no server runs. Prints a table and
ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

# As `echolm serve` sets it: more threads only spin on matrices of this size.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from echolm.learning.event_log import Event
from echolm.learning.feedback import RATING
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Candidate
from echolm.retrieval.features import ExampleTexts, featurize
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.selector import Selection
from echolm.retrieval.utility import LearnedUtility
from echolm.settings.loading import load_settings
from echolm.wiring.retrieval import build_selector
from echolm.wiring.routing import build_bandit
from echolm_lab.tasks import WorkItem, Workload

_STORED = 4_000
_DIMENSION = 384


def candidates(
    stored: list[WorkItem], request: WorkItem, n: int, rng: Random
) -> tuple[Candidate, ...]:
    """``n`` stored examples, those of the same intent first, all of them similar enough."""
    same = [k for k, item in enumerate(stored) if item.intent_id == request.intent_id]
    others = rng.sample(range(len(stored)), n)
    chosen = list(dict.fromkeys([*same, *others]))[:n]
    return tuple(
        Candidate(
            k + 1, stored[k].text, stored[k].answer, "public", 0.95, 0.95 - 0.3 * rank / max(1, n)
        )
        for rank, k in enumerate(chosen)
    )


Found = list[tuple[Candidate, ...]]


def as_from_a_store(found: Found) -> Found:
    """The same candidates, of new objects."""

    def new(text: str) -> str:
        return text.encode().decode()

    return [
        tuple(
            replace(c, request=new(c.request), response=new(c.response), tenant=new(c.tenant))
            for c in row
        )
        for row in found
    ]


def cpu_ms(call: Callable[[int, Found], object], batches: Sequence[Found]) -> tuple[float, float]:
    """Median and 99th percentile of a call's CPU time in milliseconds, all threads counted.

    Args:
        call: is given the number of a batch and its candidates.
    """
    taken = []
    for k, batch in enumerate(batches):
        found = as_from_a_store(batch)
        started = time.process_time_ns()
        call(k, found)
        taken.append((time.process_time_ns() - started) / 1e6)
    return float(np.median(taken)), float(np.percentile(taken, 99))


def train(model: LearnedUtility, selections: list[Selection], rng: Random) -> None:
    """Rate each selection, so that the model has weights and examples have effects."""
    for k, selection in enumerate(selections):
        if selection.record is not None:
            body = {
                "request_id": str(k),
                "llm": "small_llm",
                "score": float(rng.random() < 0.8),
                "selection": selection.record.dump(),
            }
            model.apply(Event(str(k), RATING, body, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=32, help="in a batch")
    parser.add_argument("--candidates", type=int, default=32, help="of each request")
    parser.add_argument("--rounds", type=int, default=100, help="batches measured")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = Random(options.seed)
    draws = np.random.default_rng(options.seed)
    workload = Workload(seed=0)
    stored = workload.stream(_STORED, seed=options.seed)
    live = workload.stream(options.requests * options.rounds, seed=options.seed + 1)
    found = [candidates(stored, item, options.candidates, rng) for item in live]

    def batch(k: int) -> slice:
        return slice(k * options.requests, (k + 1) * options.requests)

    settings = load_settings()
    selector = build_selector(settings, EstimatedTokens(), draws, _DIMENSION)
    texts = [item.text for item in live]
    selections = selector.select(texts, found)  # as in a server that has run for a while
    model = selector.utility
    if isinstance(model, LearnedUtility):
        train(model, selections, rng)
    example_texts = ExampleTexts(EstimatedTokens())
    scale = SimilarityScale.of(selector.newest_statistics.statistics)
    featurize(texts, found, example_texts, scale)
    batches = [
        featurize(texts[batch(k)], found[batch(k)], example_texts, scale)
        for k in range(options.rounds)
    ]
    featurizer, bandit = build_bandit(settings)
    embeddings = draws.standard_normal((len(live), _DIMENSION)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    vectors = list(embeddings)

    def route(k: int, chosen: list[Selection]) -> None:
        part = batch(k)
        examples = [selection.examples for selection in chosen]
        bandit.choose_many(featurizer.many(texts[part], vectors[part], examples), {}, draws)

    def cold(k: int, found: Found) -> None:
        featurize(texts[batch(k)], found, ExampleTexts(EstimatedTokens(), 2_048), scale)

    parts: dict[str, Callable[[int, Found], object]] = {
        "features": lambda k, found: featurize(texts[batch(k)], found, example_texts, scale),
        "scoring": lambda k, found: model.score(batches[k]),
        "selection, features and scoring included": lambda k, found: selector.select(
            texts[batch(k)], found
        ),
        "routing": lambda k, found: route(k, selections[batch(k)]),
        "decision": lambda k, found: route(k, selector.select(texts[batch(k)], found)),
        "features of examples seen for the first time": cold,
    }
    in_batches = [found[batch(k)] for k in range(options.rounds)]
    results = {name: cpu_ms(call, in_batches) for name, call in parts.items()}
    print(f"CPU ms for {options.requests} requests with {options.candidates} candidates each")
    for name, (median, p99) in results.items():
        print(f"  {name:46} median {median:6.2f}   p99 {p99:6.2f}")
    print(
        json.dumps(
            {
                "requests": options.requests,
                "candidates": options.candidates,
                "cpu_ms": {
                    name: {"median": round(median, 3), "p99": round(p99, 3)}
                    for name, (median, p99) in results.items()
                },
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
