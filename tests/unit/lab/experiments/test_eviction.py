"""The simulated store of the eviction benchmark."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from echolm_lab.experiments.eviction import (
    ByRank,
    Contents,
    EvictionPolicy,
    ValueDensity,
    offloaded,
)
from echolm_lab.tasks import Workload

STREAM = Workload(seed=0).stream(160, seed=1)
PAST, NEW = STREAM[:120], STREAM[120:]
SIZE = sum(len(item.text.encode()) + len(item.answer.encode()) for item in PAST)


def contents() -> Contents:
    vectors = np.random.default_rng(0).standard_normal((len(PAST), 8)).astype(np.float32)
    return Contents(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0.5)


def run(policy: EvictionPolicy | None, store: Contents, share: float = 0.5) -> float:
    return offloaded(PAST, NEW, policy, store, share * SIZE, 7.0, (0.7, 0.99), Random(1))


@pytest.mark.parametrize("kind", ["value", "value and neighbours", "lru", "lfu", "random"])
def test_a_policy_keeps_the_store_within_its_capacity(tmp_path: Path, kind: str) -> None:
    store = contents()
    policy: EvictionPolicy
    if kind.startswith("value"):
        near = store.neighbours if "neighbours" in kind else None
        policy = ValueDensity(tmp_path / "statistics", near)
    else:
        policy = ByRank(kind, Random(1))
    share = run(policy, store)
    stored = [PAST[i - 1] for i in store.intent_of]
    assert sum(len(i.text.encode()) + len(i.answer.encode()) for i in stored) <= 0.5 * SIZE
    assert len(stored) > 20
    assert 0 < share <= run(None, contents())


def test_a_full_store_offloads_what_it_has_an_example_of() -> None:
    known = {item.intent_id for item in PAST}
    assert run(None, contents()) == np.mean([item.intent_id in known for item in NEW])
