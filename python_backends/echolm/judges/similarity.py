"""The judge ``similarity``: how near an answer's embedding comes to the reference's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from echolm.judges.base import Judgement, Scale


class TextEmbedder(Protocol):
    """Turns texts into embeddings."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """FP32 [n, D], unit length; UnavailableError if that fails. No text is empty."""


@dataclass(frozen=True)
class SimilarityJudge:
    """Cheap, without an LLM, and insensitive to details.

    score = (cosine - floor) / (1 - floor), within 0..1.

    The floor is the cosine that answers to *different* requests of one kind reach, so that being
    about the right subject is worth nothing. With all-MiniLM-L6-v2 on the demo workload the median
    (5% .. 95%) of the cosine to the right answer is, for the answer

    ====================================== ====================
    of another domain                      0.17 (0.04 .. 0.37)
    of another intent of the domain        0.51 (0.33 .. 0.73)
    cut in half                            0.90 (0.73 .. 0.94)
    of the look-alike intent               0.90 (0.80 .. 0.98)
    with other slot values                 0.96 (0.86 .. 1.00)
    ====================================== ====================

    so a floor of 0.75 gives other intents 0. An answer to another request of the same intent,
    which is of no use, still gets 0.8: take this judge where answers are prose, and another one
    where a wrong word makes an answer useless. The embedder reads the first tokens of a text only
    (256 with all-MiniLM-L6-v2).
    """

    embedder: TextEmbedder
    floor: float
    kind: ClassVar[str] = "similarity"
    scale: ClassVar[Scale] = "agreement"

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        started = time.perf_counter()
        if reference is None or not reference.strip():
            return Judgement(None)
        if not answer.strip():
            return Judgement(0.0)
        first, second = await self.embedder.embed([answer, reference])
        score = (float(first @ second) - self.floor) / (1.0 - self.floor)
        return Judgement(min(1.0, max(0.0, score)), seconds=time.perf_counter() - started)
