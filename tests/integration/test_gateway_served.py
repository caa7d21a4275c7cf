"""The gateway in front of a real Triton, through OpenAI's own client as it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
import tritonclient.grpc as grpcclient
from echolm.serving import Endpoints
from echolm_lab.tasks import Workload
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from triton_calls import Caller, eventually, inputs, samples, text

pytestmark = pytest.mark.timeout(240)

USER: Any = [{"role": "user", "content": "How do I find large files?"}]
FORCED: dict[str, Any] = {"llm": "large_llm", "cache_control": "no-cache"}


@pytest.fixture
def client(server: Endpoints) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=server.gateway_url, max_retries=0) as client:
        yield client


def test_only_the_metrics_of_triton_are_for_others(server: Endpoints) -> None:
    """127.0.0.2 is an address of this machine that a server on 127.0.0.1 does not have."""

    def at_another_address(url: str) -> str:
        return url.replace("127.0.0.1", "127.0.0.2")

    page = httpx.get(at_another_address(server.metrics_url))
    assert "nv_inference_count" in page.text
    for url in (server.http_url, f"http://{server.grpc_url}"):
        assert at_another_address(url) != url
        with pytest.raises(httpx.ConnectError):
            httpx.get(at_another_address(url))


def in_flight(server: Endpoints) -> float:
    return samples(server, "echolm_in_flight", llm="large_llm")


def test_an_answer_is_that_of_triton(server: Endpoints, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echolm", messages=USER, max_tokens=24, extra_body=FORCED
    )
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    direct = Caller(server).ask(USER[0]["content"], max_tokens=24, **FORCED)
    assert answer.choices[0].message.content == text(direct, "text_output")
    assert answer.choices[0].finish_reason == text(direct, "finish_reason")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == direct["num_output_tokens"].item()
    assert answer.usage.prompt_tokens == direct["num_input_tokens"].item()
    extra: Any = answer.model_extra
    assert extra["echolm"]["llm"] == "large_llm"


def test_the_pieces_of_a_stream_are_the_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="large_llm", messages=USER, max_tokens=64, extra_body={"cache_control": "no-cache"}
    )
    chunks = list(
        client.chat.completions.create(
            model="large_llm",
            messages=USER,
            max_tokens=64,
            extra_body={"cache_control": "no-cache"},
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-1].usage == whole.usage


def test_the_streaming_helper_and_raw_responses_of_openais_client(client: OpenAI) -> None:
    # The helper raises an error of its own where the limit cuts an answer, so it must end itself.
    known = [{"role": "user", "content": Workload(seed=0).stream(1, seed=5)[0].text}]
    asked: Any = {"model": "large_llm", "messages": known, "max_completion_tokens": 400}
    asked |= {"extra_body": {"cache_control": "no-cache"}, "extra_headers": {"X-Team": "search"}}
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert raw.headers["x-request-id"].startswith("req_")
    whole = raw.parse().choices[0]
    with client.chat.completions.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        answer = stream.get_final_completion().choices[0]
    assert "".join(pieces) == answer.message.content == whole.message.content
    assert answer.finish_reason == whole.finish_reason


def test_a_conversation_reaches_the_llm_with_what_came_before(client: OpenAI) -> None:
    before: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "How do I list files?"}]},
        {"role": "assistant", "content": "ls"},
    ]

    def ask(messages: Any) -> ChatCompletion:
        return client.chat.completions.create(
            model="echolm", messages=messages, max_tokens=8, extra_body=FORCED
        )

    alone, after = ask(USER), ask([*before, *USER])
    assert alone.usage is not None
    assert after.usage is not None
    assert after.usage.prompt_tokens > alone.usage.prompt_tokens + 10


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"role": "bot", "content": "a"}], "messages[0].role: expected one of"),
        ([*USER, {"role": "assistant", "content": "a"}], "the last message to be a user's"),
        ([{"role": "user", "content": ""}], "messages[0].content: expected text that is not empty"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}], "text"),
        (
            [*USER, {"role": "tool", "content": "1", "tool_call_id": "c"}],
            "messages[1].tool_call_id",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(client: OpenAI, messages: Any, told: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="echolm", messages=messages)
    assert told in str(refusal.value)


async def test_many_at_a_time(server: Endpoints) -> None:
    async with AsyncOpenAI(api_key="none", base_url=server.gateway_url) as client:

        async def one(number: int) -> str:
            stream = await client.chat.completions.create(
                model="small_llm",
                messages=[{"role": "user", "content": f"request {number}"}],
                max_tokens=8,
                stream=True,
            )
            ends = [c.choices[0].finish_reason async for c in stream if c.choices]
            return ends[-1] or ""

        ends = await asyncio.gather(*(one(number) for number in range(40)))
    assert set(ends) <= {"stop", "length"}


def test_completions_and_several_choices(client: OpenAI) -> None:
    answer = client.completions.create(
        model="small_llm", prompt=["list files", "find files"], n=2, max_tokens=4, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_embeddings_are_the_embedders(server: Endpoints, client: OpenAI) -> None:
    texts = ["How do I find large files?", "Übergrößen ↑"]
    answer = client.embeddings.create(model="text_embedding", input=texts)
    triton = grpcclient.InferenceServerClient(server.grpc_url)
    asked = inputs(grpcclient, [{"text_input": text} for text in texts])
    expected = triton.infer("text_embedding", asked).as_numpy("embedding")
    np.testing.assert_array_equal(np.array([row.embedding for row in answer.data], "f4"), expected)


def test_an_answer_is_rated_by_its_id_whichever_worker_gave_it(server: Endpoints) -> None:
    for _ in range(6):  # with a connection each, which either worker takes
        with OpenAI(api_key="none", base_url=server.gateway_url) as client:
            answer = client.chat.completions.create(
                model="echolm", messages=USER, max_tokens=4, extra_body={"tenant": "rating"}
            )
        rated = httpx.post(f"{server.gateway_url}/feedback", json={"id": answer.id, "score": 0.5})
        assert rated.json() == {"object": "feedback", "accepted": True}
    token: Any = answer.model_extra
    body = {"feedback_token": token["echolm"]["feedback_token"], "score": 1, "tenant": "other"}
    assert httpx.post(f"{server.gateway_url}/feedback", json=body).status_code == 400
    body["feedback_token"] = "forged"
    refused = httpx.post(f"{server.gateway_url}/feedback", json=body)
    assert refused.json()["error"]["param"] == "feedback_token"


@pytest.mark.parametrize("stream", [False, True])
def test_what_triton_refuses_is_refused(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="echolm", messages=USER, max_tokens=100_000, stream=stream
        )
    assert refused.value.param == "max_tokens"
    long: Any = [{"role": "user", "content": "word " * 6_000}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echolm", messages=long, stream=stream)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_stops_the_llm(server: Endpoints, stream: bool) -> None:
    def cancelled() -> float:
        return samples(server, "echolm_llm_cancelled_total", model="large_llm")

    before = cancelled()
    body = {"model": "large_llm", "messages": USER, "max_tokens": 1_500, "stream": stream}
    body |= {"cache_control": "no-cache"}
    url = f"{server.gateway_url}/chat/completions"
    async with httpx.AsyncClient(timeout=120) as client:
        if stream:
            async with client.stream("POST", url, json=body) as response:
                await anext(response.aiter_lines())
        else:
            assert await asyncio.to_thread(eventually, lambda: in_flight(server) == 0)
            asking = asyncio.ensure_future(client.post(url, json=body))
            assert await asyncio.to_thread(eventually, lambda: in_flight(server) > 0)
            asking.cancel()
    assert await asyncio.to_thread(eventually, lambda: cancelled() == before + 1)


def test_a_worker_that_is_killed_comes_back(server: Endpoints) -> None:
    def workers() -> list[int]:
        found = []
        for process in psutil.Process(server.pids["gateway"]).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none any more
                # The resource tracker is a child as well.
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process.pid)
        return sorted(found)

    before = workers()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    assert eventually(lambda: len(workers()) == 2 and workers() != before)
    for _ in range(6):
        with httpx.Client() as client:
            assert client.get(f"{server.gateway_url}/models").status_code == 200
    page = httpx.get(server.gateway_url.replace("/v1", "/metrics")).text
    assert 'echolm_gateway_requests_total{endpoint="/v1/models",status="200"}' in page
