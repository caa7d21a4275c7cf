from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from echolm.store.base import Example, scope_key
from echolm.testing.store import InMemoryStore
from echolm_client import Answer
from echolm_lab.policies.base import MAX_TOKENS, Asking, Reply
from echolm_lab.policies.llm import LLMPolicy
from echolm_lab.policies.nearest import CopyNearest, NearestAnswers
from echolm_lab.policies.semantic_cache import SemanticCache
from echolm_lab.tasks import Item
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


class Embedding:
    """Stands for a gRPC client of a server that embeds every text alike."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Any]]] = []

    async def infer(self, model: str, inputs: list[Any]) -> Embedding:
        self.asked.append((model, inputs))
        return self

    def as_numpy(self, name: str) -> NDArray[Any]:
        assert name == "embedding"
        return np.array([[1.0, 0.0]], dtype=np.float32)


def stored(*interactions: tuple[float, str], system_prompt: str = "") -> NearestAnswers:
    """A store with these responses, at these similarities to every request."""
    store = InMemoryStore(2)
    examples = [
        Example(n, "q", response, "public", scope_key("public", system_prompt), "l", 0.9, 1, 1)
        for n, (_, response) in enumerate(interactions, 1)
    ]
    vectors = [[similarity, (1 - similarity**2) ** 0.5] for similarity, _ in interactions]
    store.upsert(examples, np.array(vectors, np.float32))
    grpc: Any = Embedding()
    return NearestAnswers(grpc, store)


class Large:
    name = "always_large"

    def __init__(self) -> None:
        self.asked: list[Item] = []

    async def send(self, item: Item) -> Reply:
        self.asked.append(item)
        return Reply("generated", "large_llm")


async def test_a_fixed_llm_is_asked_for_by_name_without_any_store() -> None:
    client: Any = Client()
    policy = LLMPolicy("always_large", client, "large_llm", "no-cache")
    reply = await policy.send(ITEM)
    assert policy.name == "always_large"
    options = {"llm": "large_llm", "cache_control": "no-cache"}
    assert client.asked == [(ITEM.text, {**options, "system_prompt": "", "max_tokens": MAX_TOKENS})]
    assert reply == Reply("pong", "large_llm", 2, "token", True, "no examples: why")


async def test_all_requests_may_have_a_system_prompt_and_another_limit() -> None:
    client: Any = Client()
    await LLMPolicy("echolm", client, asking=Asking("Be brief.", 7)).send(ITEM)
    [(_, options)] = client.asked
    assert (options["system_prompt"], options["max_tokens"]) == ("Be brief.", 7)


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
    found = await stored((0.7, "far"), (0.95, "ünear"), (0.8, "middle")).find("wörds")
    assert (round(found.similarity, 4), found.response) == (0.95, "ünear")


async def test_an_empty_store_has_no_neighbour() -> None:
    for empty in (stored(), stored((0.9, "of another"), system_prompt="Be kind.")):
        found = await empty.find("text")
        assert (found.similarity, found.response) == (-1.0, "")
        assert await CopyNearest(empty).send(ITEM) == Reply("", "cache")


async def test_the_nearest_answer_is_copied_however_far_it_is() -> None:
    assert await CopyNearest(stored((0.1, "far"))).send(ITEM) == Reply("far", "cache")


@pytest.mark.parametrize(("threshold", "hit"), [(0.5, True), (0.75, True), (0.8, False)])
async def test_a_semantic_cache_answers_from_its_threshold_on(threshold: float, hit: bool) -> None:
    large = Large()
    reply = await SemanticCache(stored((0.75, "stored"), (0.1, "other")), large, threshold).send(
        ITEM
    )
    assert reply == (Reply("stored", "cache") if hit else Reply("generated", "large_llm"))
    assert large.asked == ([] if hit else [ITEM])


async def test_a_semantic_cache_without_interactions_asks_the_large_llm() -> None:
    assert (await SemanticCache(stored(), Large(), 0.0).send(ITEM)).llm == "large_llm"
