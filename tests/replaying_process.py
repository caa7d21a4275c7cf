"""A process of its own that replays examples, for tests that kill it.

replaying_process.py DATA_DIR MILVUS_URI command     as `echolm examples replay` does
replaying_process.py DATA_DIR MILVUS_URI off_peak    as a server does, for ever

Prints ``sampled N`` when the LLM is asked for an answer to the N-th request, and ``done N`` when
its replay has come to an end. Every third request has no better answer.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from echolm.examples.off_peak import OffPeakReplay
from echolm.examples.replay import Replayed, Replayer
from echolm.examples.statistics import StatisticsTable
from echolm.judges.grader import GraderJudge
from echolm.learning.event_log import EventLog
from echolm.learning.feedback import RATING
from echolm.primitives import Completion, OnPiece, Sampling
from echolm.settings import ExamplesSettings, JudgingSettings, ReplaySettings, Settings
from echolm.store.base import Example, scope_key
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log
from echolm.wiring.llms import build_endpoints
from numpy.typing import NDArray
from writing_process import DIMENSION, retrieval

GRADER = f"{Path(__file__).stem}:grade"
_NUMBER = re.compile(r"request (\d+)")
_LONG = " and more" * 400  # half an answer must differ from a whole one


def settings(data_dir: Path) -> Settings:
    return Settings(
        data_dir=data_dir,
        examples=ExamplesSettings(),
        judging=JudgingSettings(kind="grader", grader=GRADER),
        replay=ReplaySettings(off_peak=True, pause_s=0.1, candidates=2),
    )


def answer(number: int, better: bool) -> str:
    return f"{'good' if better else 'poor'} answer {number}{_LONG}."


def is_improvable(number: int) -> bool:
    return number % 3 != 0


def embedding(number: int) -> NDArray[np.float32]:
    vector = np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)
    return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)


def example(number: int) -> Example:
    text = answer(number, better=False)
    scope = scope_key("t", "")
    # Ids that a new one is never the same as.
    return Example(
        number + 1, f"request {number}", text, "t", scope, "large_llm", 0.9, 1_000, 1_000
    )


def uses(number: int) -> int:
    """How often the N-th example had been used."""
    return number % 7 + 1


def rate(log: EventLog, number: int) -> None:
    """Put a rating, as good as was expected, of an answer with the N-th example into the log."""
    body = {"request_id": f"r{number}", "llm": "small_llm", "score": 0.5, "quality": 0.5}
    log.append(RATING, {**body, "example_ids": [number + 1]})


def grade(request: str, text: str, reference: str | None) -> float:
    return 0.9 if text.startswith("good") else 0.3


def number_of(request: str) -> int:
    found = _NUMBER.search(request)
    assert found is not None, request
    return int(found[1])


class Sampler:
    """An LLM that knows a better answer to most requests, and takes a moment."""

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        number = number_of(prompt)
        print(f"sampled {number}", flush=True)
        await asyncio.sleep(random.uniform(0.0, 0.05))
        return Completion(answer(number, is_improvable(number)), "stop", 10, 10)

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        return ()


async def replay(data_dir: Path, uri: str, mode: str) -> None:
    chosen = settings(data_dir)
    store = MilvusStore(retrieval(uri), "fake", DIMENSION)
    log = open_event_log(chosen)
    statistics = StatisticsTable(chosen.statistics_path, chosen.relative_costs)
    endpoints = build_endpoints(chosen, {llm.name: Sampler() for llm in chosen.llms})
    replayer = Replayer(store, statistics, log, endpoints, GraderJudge(grade), chosen)
    requests = {e.id: e.request for batch in store.scan(embeddings=False) for e, _ in batch}

    def report(one: Replayed) -> None:
        if one.reason != "LLM or judge failed":
            print(f"done {number_of(requests[one.id])}", flush=True)

    print("begun", flush=True)
    if mode == "command":
        async for one in replayer.run(1_000_000):
            report(one)
    else:
        # The lease of one that was killed is over in minutes, and tests do not wait for it.
        await OffPeakReplay(replayer, log, chosen.replay, lambda: 0, "the only one", report).run()


if __name__ == "__main__":
    asyncio.run(replay(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
