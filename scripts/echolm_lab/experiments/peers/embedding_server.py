"""The product's embedder behind OpenAI's ``/v1/embeddings``, for peers that have none of their own.

Run as ``python -m echolm_lab.experiments.peers.embedding_server PORT``. What arrives while a
batch is embedded is the next batch, as servers of embeddings do it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.settings import Settings
from numpy.typing import NDArray

from echolm_lab.experiments.peers.http_server import Handler, serve

MODEL = "minilm"
_MOST_TEXTS = 64

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class Batcher:
    """Embeds what waits, together; one batch at a time, off the event loop."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._waiting: list[tuple[list[str], asyncio.Future[NDArray[np.float32]]]] = []
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """FP32 [n, D]."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[NDArray[np.float32]] = loop.create_future()
        self._waiting.append((texts, future))
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_MOST_TEXTS], self._waiting[_MOST_TEXTS:]
            texts = [text for texts, _ in batch for text in texts]
            vectors = await asyncio.to_thread(self._embed, texts)
            start = 0
            for part, future in batch:
                if not future.done():  # the caller may have gone
                    future.set_result(vectors[start : start + len(part)])
                start += len(part)


def response(vectors: NDArray[np.float32], as_base64: bool) -> bytes:
    """OpenAI's response to a request for embeddings."""

    def value(vector: NDArray[np.float32]) -> str | list[float]:
        return base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()

    data = [
        {"object": "embedding", "index": index, "embedding": value(vector)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return json.dumps({"object": "list", "data": data, "model": MODEL, "usage": usage}).encode()


def handlers(embed: Embed) -> Mapping[str, Handler]:
    """What the server answers, by path."""
    batcher = Batcher(embed)

    async def embeddings(body: Any) -> bytes:
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        return response(await batcher(texts), body.get("encoding_format") == "base64")

    async def ready(body: Any) -> bytes:
        return b"{}"

    return {"/v1/embeddings": embeddings, "/ready": ready}


if __name__ == "__main__":
    serve(int(sys.argv[1]), handlers(TextEmbedder(Settings().embedding)))
