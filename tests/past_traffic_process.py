"""A process of its own that learns from a log, for tests that kill it.

past_traffic_process.py DATA_DIR MILVUS_URI LOG

Prints ``stored N`` after each batch, ``asked ID`` when the small LLM is asked and ``judged ANSWER``
when its answer is judged, and ``end`` when all is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from echolm.judges.similarity import SimilarityJudge
from echolm.past_traffic import storing
from echolm.past_traffic.acceptance import Acceptance
from echolm.past_traffic.cost import Budget
from echolm.past_traffic.log import PastLog, Skips, fingerprint, open_log
from echolm.past_traffic.record import Logged
from echolm.past_traffic.sample import HashSample
from echolm.primitives import Completion, OnPiece, Sampling
from echolm.settings import ExamplesSettings, JudgingSettings, Settings
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log
from echolm.wiring.llms import build_endpoints
from echolm.wiring.past_traffic import (
    build_past_examples,
    build_past_learning,
    build_past_replay,
    open_past_traffic_state,
)
from numpy.typing import NDArray
from writing_process import DIMENSION, retrieval

BATCH = 16
storing._BATCH = BATCH  # batches of this size are stored in a moment


def settings(data_dir: Path) -> Settings:
    return Settings(
        data_dir=data_dir,
        examples=ExamplesSettings(),
        judging=JudgingSettings(kind="similarity", similarity_floor=0.0),
    )


def embedding(text: str) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    vector = np.abs(np.random.default_rng(seed).standard_normal(DIMENSION)).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([embedding(text) for text in texts])


class JudgingEmbedder:
    """Says which answer is judged, and takes a moment."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        print(f"judged {texts[0]}", flush=True)
        await asyncio.sleep(random.uniform(0.0, 0.02))
        return embed(texts)


class SmallLLM:
    """Takes a moment to answer with the name of the question."""

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        print(f"asked {request_id}", flush=True)
        await asyncio.sleep(random.uniform(0.0, 0.02))
        return Completion(request_id, "stop", 10, 10)

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        return ()


def opened(path: Path, chosen: Settings) -> tuple[PastLog, list[Logged]]:
    """The log, and what is sampled of it: a quarter."""
    log = open_log([path], tenant="t", accept=Acceptance(chosen, {}, "large_llm"))
    every = list(log.read(Skips()))
    sample = HashSample(len(every) // 4)
    for logged in every:
        sample.offer(logged)
    return log, sample.all()


async def learn(data_dir: Path, uri: str, path: Path) -> None:
    chosen = settings(data_dir)
    store = MilvusStore(retrieval(uri), "fake", DIMENSION)
    events, state = open_event_log(chosen), open_past_traffic_state(chosen)
    learning = build_past_learning(chosen, events)
    examples = build_past_examples(chosen, store, events, embed, learning)
    log, sample = opened(path, chosen)
    print("begun", flush=True)
    learning.learner.catch_up()
    known = fingerprint([path])
    for count in examples.store_log(log, known, state):
        print(f"stored {count}", flush=True)
    endpoints = build_endpoints(chosen, {llm.name: SmallLLM() for llm in chosen.llms})
    budget = Budget(None, {}, chosen.judge_llm.name)
    replay = build_past_replay(
        chosen, examples, learning, state, budget, endpoints, JudgingEmbedder(), known, 4, DIMENSION
    )
    assert isinstance(replay.judge, SimilarityJudge)
    replay.recall()
    async for _ in replay.run(sample):
        pass
    print(f"spent {budget.total:.0f}", flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    asyncio.run(learn(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
