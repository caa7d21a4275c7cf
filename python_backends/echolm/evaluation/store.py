"""Fills a data directory's example store before a server runs on it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echolm.embedding import OnnxEmbedder, TextTokenizer
from echolm.retrieval.milvus import MilvusStore
from echolm.retrieval.store import Example, scope_key
from echolm.serving.milvus_lite import MilvusLite, MilvusLiteOptions
from echolm.settings import Settings

_BATCH = 250
_QUALITY = 0.95  # what the large LLM's answers are usually taken for


class Embed:
    """Embeddings of texts, outside of any server.

    Args:
        settings: names the embedding model.
    """

    def __init__(self, settings: Settings) -> None:
        self._tokenizer = TextTokenizer.load(settings.embedding.model_dir)
        self._embedder = OnnxEmbedder.load(settings.embedding.model_dir)
        self.name, self.dimension = self._embedder.name, self._embedder.dimension

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """FP32 [n, D], unit length."""
        parts = [np.zeros((0, self.dimension), dtype=np.float32)]
        for start in range(0, len(texts), _BATCH):
            tokens = self._tokenizer.encode(list(texts[start : start + _BATCH]))
            parts.append(self._embedder.embed(tokens.input_ids, tokens.attention_mask))
        return np.concatenate(parts)


def fill(
    settings: Settings,
    exchanges: Sequence[tuple[str, str]],
    on_stored: Callable[[int], None] = lambda count: None,
) -> None:
    """Store requests and responses in ``data_dir``'s Milvus Lite file, as of the large LLM.

    Ids are 1, 2, ... in their order. No server may run on the directory meanwhile.

    Args:
        on_stored: is told how many more are stored.
    """
    embed = Embed(settings)
    with tempfile.TemporaryDirectory() as run_dir:
        milvus = MilvusLite(
            MilvusLiteOptions(
                database=settings.data_dir / "milvus.db",
                run_dir=Path(run_dir),
                log_file=settings.data_dir / "fill.log",
            )
        )
        milvus.start()
        try:
            retrieval = settings.retrieval.model_copy(update={"milvus_uri": milvus.uri})
            store = MilvusStore(retrieval, embed.name, embed.dimension)
            now = time.time_ns() // 1_000_000
            for start in range(0, len(exchanges), _BATCH):
                part = exchanges[start : start + _BATCH]
                examples = [
                    Example(
                        id=start + place + 1,
                        request=request,
                        response=response,
                        tenant="public",
                        scope=scope_key("public", ""),
                        source_llm="large_llm",
                        quality=_QUALITY,
                        created_at_ms=now,
                        updated_at_ms=now,
                    )
                    for place, (request, response) in enumerate(part)
                ]
                store.upsert(examples, embed([request for request, _ in part]))
                on_stored(len(part))
            store.close()
        finally:
            milvus.stop()
