from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from echolm import contracts
from echolm.primitives import Retrieved, Selected
from echolm.retrieval.packed import pack
from echolm_client import Answer
from echolm_lab.policies.base import MAX_TOKENS, Reply
from echolm_lab.policies.llm import LLMPolicy
from echolm_lab.policies.semantic_cache import SemanticCache, nearest
from echolm_lab.tasks import WorkItem
from numpy.typing import NDArray
from workload_items import items

ITEM = items(1)[0]


def answer(llm: str) -> Answer:
    return Answer(
        text="pong",
        llm=llm,
        example_ids=(4, 7),
        predicted_quality=0.9,
        solicit_feedback=True,
        feedback_token="token",
        degraded="no examples: why",
        finish_reason="stop",
        num_input_tokens=10,
        num_output_tokens=3,
        latency_s=0.1,
    )


@dataclass
class Client:
    """Stands for AsyncClient; keeps what it was asked."""

    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def generate(self, text: str, **options: Any) -> Answer:
        self.asked.append((text, options))
        return answer("small_llm" if options["llm"] == "auto" else options["llm"])


class Stored:
    """Stands for a gRPC client of a server whose store holds these interactions."""

    def __init__(self, *interactions: tuple[float, str]) -> None:
        self._interactions = interactions
        self.asked: list[tuple[str, list[Any]]] = []

    async def infer(self, model: str, inputs: list[Any]) -> Stored:
        self.asked.append((model, inputs))
        return self

    def as_numpy(self, name: str) -> NDArray[Any]:
        if name == "embedding":
            return np.ones((1, 4), dtype=np.float32)
        assert name == contracts.RETRIEVED.name
        examples = [Selected(1, "", r, s, s) for s, r in self._interactions]
        return np.array([[pack(Retrieved(examples=tuple(examples)))]], dtype=np.object_)


class Large:
    name = "always_large"

    def __init__(self) -> None:
        self.asked: list[WorkItem] = []

    async def send(self, item: WorkItem) -> Reply:
        self.asked.append(item)
        return Reply("generated", "large_llm")


async def test_a_fixed_llm_is_asked_for_by_name_without_any_store() -> None:
    client: Any = Client()
    policy = LLMPolicy("always_large", client, "large_llm", "no-cache")
    reply = await policy.send(ITEM)
    assert policy.name == "always_large"
    assert client.asked == [
        (ITEM.text, {"llm": "large_llm", "cache_control": "no-cache", "max_tokens": MAX_TOKENS})
    ]
    assert reply == Reply("pong", "large_llm", 2, "token", True, "no examples: why")


async def test_echolm_chooses_and_learns_unless_told_otherwise() -> None:
    client: Any = Client()
    reply = await LLMPolicy("echolm", client).send(ITEM)
    [(_, options)] = client.asked
    assert (options["llm"], options["cache_control"]) == ("auto", "default")
    assert reply.llm == "small_llm"


async def test_what_the_client_raises_comes_through() -> None:
    class Down:
        async def generate(self, text: str, **options: Any) -> Answer:
            raise ConnectionError("down")

    client: Any = Down()
    with pytest.raises(ConnectionError):
        await LLMPolicy("echolm", client).send(ITEM)


async def test_the_nearest_interaction_is_the_most_similar_wherever_it_stands() -> None:
    grpc: Any = Stored((0.7, "far"), (0.95, "ünear"), (0.8, "middle"))
    found = await nearest(grpc, "wörds")
    assert (round(found.similarity, 4), found.response) == (0.95, "ünear")
    [(first, [tensor]), (second, [text, embedding])] = grpc.asked
    assert (first, second) == (contracts.TEXT_EMBEDDING.name, contracts.RETRIEVER.name)
    assert (text.name(), embedding.shape()) == ("text_input", [1, 4])
    assert (tensor.name(), tensor.datatype(), tensor.shape()) == ("text_input", "BYTES", [1, 1])


async def test_an_empty_store_has_no_neighbour() -> None:
    grpc: Any = Stored()
    found = await nearest(grpc, "text")
    assert (found.similarity, found.response) == (-1.0, "")


@pytest.mark.parametrize(("threshold", "hit"), [(0.5, True), (0.75, True), (0.8, False)])
async def test_a_semantic_cache_answers_from_its_threshold_on(threshold: float, hit: bool) -> None:
    grpc: Any = Stored((0.75, "stored"), (0.1, "other"))
    large = Large()
    reply = await SemanticCache(grpc, large, threshold).send(ITEM)
    assert reply == (Reply("stored", "cache") if hit else Reply("generated", "large_llm"))
    assert large.asked == ([] if hit else [ITEM])


async def test_a_semantic_cache_without_interactions_asks_the_large_llm() -> None:
    grpc: Any = Stored()
    assert (await SemanticCache(grpc, Large(), 0.0).send(ITEM)).llm == "large_llm"
