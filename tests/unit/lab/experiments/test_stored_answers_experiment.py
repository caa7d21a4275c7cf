"""The benchmark of stored answers in small."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from echolm.retrieval.reuse import normalised
from echolm_lab.experiments.stored_answers import Item, serve, stream, summarise, trap
from numpy.typing import NDArray

ITEMS = [
    Item(f"is there a way to {verb} my {thing} before {n} days", f"{verb} {thing} {n}")
    for verb in ("lose", "freeze", "order", "renew", "find")
    for thing in ("card", "account", "phone", "ticket")
    for n in range(20)
]


def embed(texts: list[str]) -> NDArray[np.float32]:
    """Random directions, the same for the same words in any order."""
    rows = []
    for text in texts:
        seed = sum(map(ord, "".join(text.split())))
        rows.append(np.random.default_rng(seed).normal(size=16))
    embeddings = np.array(rows, dtype=np.float32)
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


@pytest.mark.parametrize("seed", range(20))
def test_a_trap_has_other_words_and_another_answer(seed: int) -> None:
    rng = Random(seed)
    item = rng.choice(ITEMS)
    made = trap(item, rng)
    assert made is not None
    assert made.kind == "trap"
    assert normalised(made.text) != normalised(item.text)
    assert made.answer != item.answer


def test_a_stream_has_its_shares_and_one_answer_for_each_text() -> None:
    sent = stream(ITEMS, 600, 0.2, 0.2, Random(1))
    kinds = [item.kind for item in sent]
    assert 0.15 < kinds.count("repeat") / len(sent) < 0.25
    assert 0.15 < kinds.count("trap") / len(sent) < 0.25
    answers: dict[str, str] = {}
    for item in sent:
        assert answers.setdefault(normalised(item.text), item.answer) == item.answer


def test_repeats_are_answered_from_the_store_and_traps_are_not() -> None:
    rng = Random(2)
    sent = stream(ITEMS, 600, 0.2, 0.2, rng)
    embeddings = embed([item.text for item in sent])
    result = summarise(serve(sent, embeddings, 0.01, 1.0, rng), 0.01)
    assert result.repeats_given > 0.9
    assert (result.error, result.traps_given) == (0.0, 0.0)
    nothing = summarise(serve(sent, embeddings, 1e-6, 1.0, Random(2)), 1e-6)
    assert nothing.others_given == 0.0
