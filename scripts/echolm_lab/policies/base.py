"""The ways to answer a request that are compared, each over the same running server."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from echolm import contracts
from echolm.llm.client import LLMClient
from echolm.llm.templates import PromptTemplate
from echolm.primitives import Sampling
from echolm_client import AsyncClient
from numpy.typing import NDArray

from echolm_lab.policies.static_router import StaticRouter
from echolm_lab.tasks import WorkItem

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
    """The nearest stored interaction of a request; similarity -1 if there is none."""

    similarity: float
    response: str


async def nearest(grpc: grpc_aio.InferenceServerClient, text: str) -> Neighbour:
    """The stored interaction most similar to a text, from the server's own retrieval."""
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


class ExamplesAtRandom:
    """The small LLM with past interactions drawn at random: what examples bring without a choice.

    The prompt goes straight to the LLM, which spares this policy the search.

    Args:
        llm: the small LLM's client.
        template: of its prompts.
        interactions: (request, response) pairs to draw from.
        count: examples in a prompt.
    """

    name = "random_examples"

    def __init__(
        self,
        llm: LLMClient,
        template: PromptTemplate,
        interactions: Sequence[tuple[str, str]],
        count: int,
        seed: int,
    ) -> None:
        self._llm = llm
        self._template = template
        self._exchanges = interactions
        self._count = min(count, len(interactions))
        self._rng = random.Random(seed)

    async def send(self, item: WorkItem) -> Reply:
        drawn = self._rng.sample(self._exchanges, self._count)
        completion = await self._llm.generate(
            uuid.uuid4().hex,
            self._template.render(item.text, drawn),
            Sampling(max_tokens=MAX_TOKENS),
            None,
        )
        return Reply(completion.text, "small_llm", len(drawn))


async def embedding(grpc: grpc_aio.InferenceServerClient, text: str) -> NDArray[np.float32]:
    """A text's embedding FP32 [D] from the running server, without a search."""
    inputs = [
        grpc_aio.InferInput("text_input", [1, 1], "BYTES"),
        grpc_aio.InferInput("search", [1, 1], "BOOL"),
    ]
    inputs[0].set_data_from_numpy(np.array([[text.encode("utf-8")]], dtype=np.object_))
    inputs[1].set_data_from_numpy(np.array([[False]]))
    result = await grpc.infer(contracts.RETRIEVAL.name, inputs)
    return np.array(result.as_numpy("embedding")[0], dtype=np.float32)


class StaticRouting:
    """A classifier trained offline chooses between both LLMs, neither with examples.

    Args:
        router: the classifier, fitted.
        threshold: least P(the small LLM answers well) for which it gets the request.
    """

    name = "static_router"

    def __init__(
        self,
        grpc: grpc_aio.InferenceServerClient,
        router: StaticRouter,
        threshold: float,
        small: Policy,
        large: Policy,
    ) -> None:
        self._grpc = grpc
        self._router = router
        self._threshold = threshold
        self._small = small
        self._large = large

    async def send(self, item: WorkItem) -> Reply:
        vector = await embedding(self._grpc, item.text)
        good = float(self._router.predict(vector[None])[0])
        return await (self._small if good >= self._threshold else self._large).send(item)


class StreamedAnswers:
    """An LLM of choice, streamed, so that the time to the first piece is known.

    Attributes:
        first_piece_s: of each answer, seconds from its request to its first piece.
    """

    def __init__(self, name: str, client: AsyncClient, llm: str, cache_control: str) -> None:
        self.name = name
        self.first_piece_s: list[float] = []
        self._client = client
        self._llm = llm
        self._cache_control = cache_control

    async def send(self, item: WorkItem) -> Reply:
        started = time.perf_counter()
        first = 0.0
        async with self._client.stream(
            item.text, llm=self._llm, cache_control=self._cache_control, max_tokens=MAX_TOKENS
        ) as stream:
            async for _ in stream:
                first = first or time.perf_counter() - started
        self.first_piece_s.append(first)
        answer = stream.answer
        return Reply(answer.text, answer.llm, len(answer.example_ids), answer.feedback_token)
