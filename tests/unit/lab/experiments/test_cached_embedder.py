from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from echolm.embedding import tokenizer
from echolm.settings import EmbeddingSettings
from echolm_lab.experiments import simulation
from echolm_lab.experiments.simulation import CachedEmbedder
from numpy.typing import NDArray

embedded: list[str] = []


class Lengths:
    """Embeds texts by their length."""

    name, dimension = "lengths", 2

    def __init__(self, settings: EmbeddingSettings) -> None:
        embedded.clear()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        embedded.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], np.float32)


def test_a_kept_vector_is_taken_unless_texts_are_embedded_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "TextEmbedder", Lengths)
    file = tmp_path / "vectors.npz"
    first = CachedEmbedder(EmbeddingSettings(), file)
    vectors = first(["a", "bcd"])
    first.save()
    again = CachedEmbedder(EmbeddingSettings(), file)
    assert np.array_equal(again(["a", "bcd"]), vectors)
    assert embedded == []
    monkeypatch.setattr(tokenizer, "WINDOW_VERSION", tokenizer.WINDOW_VERSION + 1)
    later = CachedEmbedder(EmbeddingSettings(), file)
    assert np.array_equal(later(["bcd"]), vectors[1:])
    assert embedded == ["bcd"]
