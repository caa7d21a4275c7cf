"""The real model, built once for these tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from echolm.embedding import OnnxEmbedder, TextTokenizer, minilm


@dataclass(frozen=True)
class Reference:
    """What transformers' BertModel gives; see make_reference.py."""

    texts: list[str]
    input_ids: list[list[int]]
    embeddings: npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def reference() -> Reference:
    path = Path(__file__).with_name("reference.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return Reference(
        [row["text"] for row in rows],
        [row["input_ids"] for row in rows],
        np.asarray([row["embedding"] for row in rows], np.float32),
    )


@pytest.fixture(scope="session")
def fp32_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder") / "fp32"
    minilm.build(folder, "fp32")
    return folder


@pytest.fixture(scope="session")
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder") / "fast"
    minilm.build(folder, "fast")
    return folder


@pytest.fixture(scope="session")
def fp32(fp32_folder: Path) -> OnnxEmbedder:
    return OnnxEmbedder.load(fp32_folder, threads=2)


@pytest.fixture(scope="session")
def fast(fast_folder: Path) -> OnnxEmbedder:
    return OnnxEmbedder.load(fast_folder, threads=2)


@pytest.fixture(scope="session")
def tokenizer(fp32_folder: Path) -> TextTokenizer:
    return TextTokenizer.load(fp32_folder)
