"""The ways to answer a request that are compared, each over the same running server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from echolm_client import AsyncClient

from echolm import contracts
from echolm.workload import WorkItem

MAX_TOKENS = 224
"""Above the longest answer of the demo workload, so that no policy is cut off."""


@dataclass(frozen=True)
class Reply:
    """An answer under some policy.

    Attributes:
        llm: who answered; ``cache`` for a stored answer.
        feedback_token: empty where the policy offers none.
        degraded: as EchoLM reports it.
    """

    text: str
    llm: str
    num_examples: int = 0
    feedback_token: str = ""
    solicit_feedback: bool = False
    degraded: str = ""


class Policy(Protocol):
    """One way to answer."""

    name: str

    async def send(self, item: WorkItem) -> Reply:
        """Answer one request; raises what the client raises."""
        ...


class LLMPolicy:
    """A fixed LLM, or EchoLM's router (``llm="auto"``).

    Args:
        cache_control: as EchoLM's input of that name.
    """

    def __init__(
        self, name: str, client: AsyncClient, llm: str = "auto", cache_control: str = "default"
    ) -> None:
        self.name = name
        self._client = client
        self._llm = llm
        self._cache_control = cache_control

    async def send(self, item: WorkItem) -> Reply:
        answer = await self._client.generate(
            item.text, llm=self._llm, cache_control=self._cache_control, max_tokens=MAX_TOKENS
        )
        return Reply(
            text=answer.text,
            llm=answer.llm,
            num_examples=len(answer.example_ids),
            feedback_token=answer.feedback_token,
            solicit_feedback=answer.solicit_feedback,
            degraded=answer.degraded,
        )


@dataclass(frozen=True)
class Neighbour:
    """The nearest stored exchange of a request; similarity -1 if there is none."""

    similarity: float
    response: str


async def nearest(grpc: grpc_aio.InferenceServerClient, text: str) -> Neighbour:
    """The stored exchange most similar to a text, from the server's own retrieval."""
    tensor = grpc_aio.InferInput("text_input", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode("utf-8")]], dtype=np.object_))
    result = await grpc.infer(contracts.RETRIEVAL.name, [tensor])
    similarities = result.as_numpy("example_similarities")[0]
    if similarities.size == 0:
        return Neighbour(-1.0, "")
    best = int(np.argmax(similarities))
    response = result.as_numpy("example_responses")[0][best].decode("utf-8")
    return Neighbour(float(similarities[best]), response)


class SemanticCache:
    """Returns the nearest stored answer above a similarity, else asks the large LLM.

    Args:
        large: answers what the cache does not.
        threshold: least cosine of a hit.
    """

    name = "semantic_cache"

    def __init__(
        self, grpc: grpc_aio.InferenceServerClient, large: Policy, threshold: float
    ) -> None:
        self._grpc = grpc
        self._large = large
        self._threshold = threshold

    async def send(self, item: WorkItem) -> Reply:
        found = await nearest(self._grpc, item.text)
        if found.similarity >= self._threshold:
            return Reply(found.response, "cache")
        return await self._large.send(item)
