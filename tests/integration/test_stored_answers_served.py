"""Answers from the store: a real Triton, Milvus Lite, the embedder and both LLMs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from echolm.serving import Endpoints
from echolm_lab.tasks import Workload
from triton_calls import Caller, Result, eventually, inputs, samples, streams, text

pytestmark = pytest.mark.timeout(240)

TOKENS = 300
ITEMS = Workload(seed=0).stream(8, seed=77)


@pytest.fixture
def caller(server: Endpoints) -> Caller:
    return Caller(server)


class Tenant:
    """A tenant for which the large LLM has answered a request, which is stored now."""

    def __init__(self, caller: Caller, request: str, **options: Any) -> None:
        self.caller, self.request = caller, request
        self.options = {"tenant": f"test-{uuid.uuid4().hex}", "max_tokens": TOKENS, **options}
        first = self.ask(llm="large_llm")
        assert text(first, "finish_reason") == "stop", "else the answer is not admitted"
        self.answer = text(first, "text_output")
        assert eventually(lambda: self.stored() is not None)

    def ask(self, request: str = "", **options: Any) -> Result:
        return self.caller.ask(request or self.request, **{**self.options, **options})

    def stored(self, request: str = "", tries: int = 1, **options: Any) -> Result | None:
        """The answer from the store; of several tries, since some are drawn to be checked."""
        for _ in range(tries):
            answer = self.ask(request, **options)
            if text(answer, "llm") == "stored":
                return answer
        return None


def test_an_exact_repeat_is_answered_from_the_store(server: Endpoints, caller: Caller) -> None:
    given = samples(server, "echolm_stored_answers_total", action="give")
    tenant = Tenant(caller, ITEMS[0].text)
    answer = tenant.stored(f"  {ITEMS[0].text} ", tries=5)
    assert answer is not None
    assert text(answer, "text_output") == tenant.answer
    assert text(answer, "finish_reason") == "stop"
    assert answer["example_ids"].shape == (1, 1)
    assert answer["predicted_quality"].item() > 0.99
    assert answer["num_output_tokens"].item() == 0
    assert text(answer, "degraded") == ""
    assert eventually(
        lambda: samples(server, "echolm_stored_answers_total", action="give") >= given + 2
    )


def test_nobody_else_gets_it(caller: Caller) -> None:
    tenant = Tenant(caller, ITEMS[1].text, system_prompt="Be brief.")
    others: list[dict[str, Any]] = [
        {"tenant": f"{tenant.options['tenant']}x"},
        {"system_prompt": "Be long."},
        {"max_tokens": TOKENS - 1},
        {"top_p": 0.9},
        {"seed": 1},
        {"temperature": 0.7},
        {"temperature": 0.7, "seed": 1},
        {"llm": "large_llm"},
        {"llm": "small_llm"},
        {"cache_control": "no-cache"},
        {"cache_control": "no-examples"},
    ]
    for other in others:
        # What nobody is given is not learnt from either, so that each try is like the first.
        options = {"cache_control": "no-store", **other}
        assert tenant.stored(tries=3, **options) is None, other
    assert tenant.stored(ITEMS[1].text + " 7", tries=3, cache_control="no-store") is None
    assert tenant.stored(tries=5, cache_control="no-store") is not None


def test_a_poor_rating_stops_it_until_a_fresh_answer_is_the_same(caller: Caller) -> None:
    tenant = Tenant(caller, ITEMS[2].text)
    answer = tenant.stored(tries=5)
    assert answer is not None
    assert caller.rate(answer["feedback_token"].item(), score=0.0)
    assert eventually(lambda: tenant.stored(cache_control="no-store") is None)
    assert tenant.stored(tries=5, cache_control="no-store") is None
    tenant.ask(llm="large_llm")
    assert eventually(lambda: tenant.stored(cache_control="no-store") is not None)


def test_it_streams_as_one_piece(server: Endpoints, caller: Caller) -> None:
    tenant = Tenant(caller, ITEMS[3].text)

    def pieces() -> list[str]:
        row = {"text_input": tenant.request, "stream": True, **tenant.options}
        with streams(server) as (client, arrived):
            client.async_stream_infer(
                "echolm_stream", inputs(caller.kind, [row]), enable_empty_final_response=True
            )
            found: list[str] = []
            while True:
                result, error = arrived.get(timeout=60)
                assert error is None
                if (llm := result.as_numpy("llm")) is not None:
                    return found if llm.item() == b"stored" else []
                found.append(result.as_numpy("text_output").item().decode())

    assert eventually(lambda: pieces() == [tenant.answer])
