"""OpenAI's API through OpenAI's own client: what is asked of ``echolm``, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from echolm.errors import ContextLengthError, EchoError, InvalidRequestError, UnavailableError
from echolm.gateway.backend import Final
from echolm.testing.gateway import FakeBackend, chat
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from served_gateway import Served

USER: Any = [{"role": "user", "content": "How do I find files?"}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


async def raw(served: Served, path: str, body: Any, key: str = "") -> Any:
    async with served.http(key) as client:
        return await client.post(path, json=body)


def events(text: str) -> list[Any]:
    """The data of a stream's events but for the last."""
    *parts, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


async def test_an_answer_is_a_chat_completion(served: Served) -> None:
    response = await raw(served, "/v1/chat/completions", chat())
    answer = ChatCompletion.model_validate(response.json(), strict=True)
    assert response.status_code == 200
    assert response.headers["x-request-id"].startswith("req_")
    assert answer.choices[0].message.content == "Use the command find."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 4)
    assert answer.usage.total_tokens == 15
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "echolm"
    assert response.json()["echolm"] == {
        "llm": "small_llm",
        "example_ids": [7, 8],
        "predicted_quality": 0.75,
        "solicit_feedback": True,
        "feedback_token": "signed",
        "degraded": "",
    }


async def test_parameters_become_inputs(served: Served) -> None:
    await served.openai().chat.completions.create(
        model="echolm",
        messages=USER,
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        seed=-1,
        stop="\n",
        user="someone",
        metadata={"any": "thing"},
        store=False,
        extra_body={"top_k": 5, "tenant": "acme", "llm": "large_llm"},
    )
    inputs = dict(served.backend.asked[0])
    assert json.loads(inputs.pop("messages")) == USER
    assert inputs == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "max_tokens": 7,
        "seed": 2**64 - 1,
        "stop_words": ["\n"],
        "tenant": "acme",
        "llm": "large_llm",
        "cache_control": "no-store",
    }


async def test_what_is_not_asked_for_is_left_to_echolm(served: Served) -> None:
    await raw(served, "/v1/chat/completions", chat(temperature=None, stop=None, n=None, tools=[]))
    assert served.backend.asked[0].keys() == {"messages", "tenant"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"store": True}, None),
        ({"store": False, "cache_control": "no-examples"}, "no-cache"),
        ({"store": False, "cache_control": "no-cache"}, "no-cache"),
        ({"cache_control": "no-store"}, "no-store"),
    ],
)
async def test_store_is_part_of_cache_control(served: Served, fields: Any, expected: Any) -> None:
    await raw(served, "/v1/chat/completions", chat(**fields))
    assert served.backend.asked[0].get("cache_control") == expected


async def test_a_stream_is_chunks(served: Served) -> None:
    response = await raw(served, "/v1/chat/completions", chat(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = [ChatCompletionChunk.model_validate(e, strict=True) for e in events(response.text)]
    assert [c.choices[0].delta.content for c in chunks] == [
        "Use ",
        "the ",
        "command ",
        "find.",
        None,
    ]
    assert [c.choices[0].delta.role for c in chunks] == ["assistant", None, None, None, None]
    assert [c.choices[0].finish_reason for c in chunks] == [None, None, None, None, "stop"]
    assert len({c.id for c in chunks}) == 1
    last = events(response.text)[-1]["echolm"]
    assert (last["llm"], last["feedback_token"]) == ("small_llm", "signed")


async def test_a_stream_ends_with_usage_where_it_is_asked_for(served: Served) -> None:
    stream = await served.openai().chat.completions.create(
        model="echolm", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * 5
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 15


async def test_an_answer_without_text_is_streamed_as_an_empty_one(served: Served) -> None:
    served.backend.final = replace(served.backend.final, text="")
    response = await raw(served, "/v1/chat/completions", chat(stream=True))
    assert [e["choices"][0]["delta"].get("content") for e in events(response.text)] == ["", None]


async def test_several_answers_have_seeds_and_tokens_of_their_own(served: Served) -> None:
    response = await raw(served, "/v1/chat/completions", chat(n=3, seed=5, temperature=1))
    answer = ChatCompletion.model_validate(response.json(), strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(inputs["seed"] for inputs in served.backend.asked) == [5, 6, 7]
    assert answer.usage is not None
    # The prompt counts once.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 12)
    assert {c["echolm"]["feedback_token"] for c in response.json()["choices"]} == {"signed"}


async def test_several_answers_are_streamed_side_by_side(served: Served) -> None:
    stream = await served.openai().chat.completions.create(
        model="echolm", messages=USER, stream=True, n=2, stream_options={"include_usage": True}
    )
    texts, ends = {0: "", 1: ""}, {}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == dict.fromkeys((0, 1), "Use the command find.")
    assert ends == {0: "stop", 1: "stop"}


async def test_what_goes_beyond_text_is_passed_on(served: Served) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": [None]}}}
    body = chat(
        logprobs=True,
        top_logprobs=2,
        tools=[TOOL],
        tool_choice="required",
        response_format=schema,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
    )
    await raw(served, "/v1/chat/completions", body)
    inputs = dict(served.backend.asked[0])
    assert json.loads(inputs["tools"]) == [TOOL]
    assert json.loads(inputs["tool_choice"]) == "required"
    assert json.loads(inputs["response_format"]) == schema
    assert (inputs["logprobs"], inputs["presence_penalty"]) == (2, 0.5)
    assert inputs["frequency_penalty"] == -0.5
    await raw(served, "/v1/completions", {"model": "echolm", "prompt": "a", "logprobs": 0})
    assert served.backend.asked[1]["logprobs"] == 0


async def test_calls_of_tools_and_their_results_are_messages(served: Served) -> None:
    said = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    answer = await served.openai().chat.completions.create(
        model="echolm", messages=said, tools=[TOOL]
    )
    assert answer.choices[0].message.content == "Use the command find."
    assert json.loads(served.backend.asked[0]["messages"]) == said
    with pytest.raises(openai.BadRequestError) as refused:
        await served.openai().chat.completions.create(model="echolm", messages=said[2:])
    assert refused.value.param == "messages[0].tool_call_id"


async def test_calls_of_tools_are_an_answer(serve: Callable[..., Any]) -> None:
    final = Final(
        "", "small_llm", finish_reason="tool_calls", tool_calls=json.dumps([CALL]).encode()
    )
    client = (await serve(FakeBackend(final))).openai()
    whole = await client.chat.completions.create(model="echolm", messages=USER, tools=[TOOL])
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.choices[0].message.content is None
    made = whole.choices[0].message.tool_calls
    assert made is not None and [call.to_dict() for call in made] == [CALL]
    # OpenAI's client puts the deltas together itself.
    async with client.chat.completions.stream(
        model="echolm", messages=USER, tools=[TOOL]
    ) as stream:
        streamed = await stream.get_final_completion()
    assert streamed.choices[0].finish_reason == "tool_calls"
    made = streamed.choices[0].message.tool_calls
    assert made is not None and made[0].function.name == "weather"
    assert (made[0].id, made[0].function.arguments) == ("call_1", "{}")


async def test_completions_have_logprobs_of_their_own_form(serve: Callable[..., Any]) -> None:
    tokens = [
        {"token": "Use", "logprob": -0.5, "bytes": [85, 115, 101], "top_logprobs": []},
        {
            "token": " the",
            "logprob": -1.5,
            "bytes": None,
            "top_logprobs": [{"token": " a", "logprob": -1.0, "bytes": None}],
        },
    ]
    final = Final(
        "Use the", "small_llm", finish_reason="stop", logprobs=json.dumps(tokens).encode()
    )
    served = await serve(FakeBackend(final))
    body = {"model": "echolm", "prompt": "a", "logprobs": 1}
    answer = (await raw(served, "/v1/completions", body)).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["Use", " the"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{"Use": -0.5}, {" the": -1.5, " a": -1.0}],
        "text_offset": [0, 3],
    }
    streamed = events((await raw(served, "/v1/completions", {**body, "stream": True})).text)
    offsets = [event["choices"][0]["logprobs"]["text_offset"] for event in streamed[:-1]]
    assert offsets == [[0, 3], [4, 7]]  # each of the two pieces says that it has both tokens


async def test_a_refusal_of_echolm_names_the_field(served: Served) -> None:
    served.backend.fails = InvalidRequestError.of(
        "tools[0].function.parameters", "a JSON schema", "another"
    )
    with pytest.raises(openai.BadRequestError) as refused:
        await served.openai().chat.completions.create(model="echolm", messages=USER, tools=[TOOL])
    assert refused.value.param == "tools[0].function.parameters"


async def test_completions(served: Served) -> None:
    body = {"model": "small_llm", "prompt": ["find files", "list files"], "n": 2, "echo": False}
    response = await raw(served, "/v1/completions", body)
    answer = Completion.model_validate(response.json(), strict=True)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    asked = [(inputs["text_input"], inputs["llm"]) for inputs in served.backend.asked]
    assert asked == [("find files", "small_llm")] * 2 + [("list files", "small_llm")] * 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (22, 16)


async def test_streamed_completions(served: Served) -> None:
    stream = await served.openai().completions.create(model="echolm", prompt="files", stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Use the command find."
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_embeddings(served: Served) -> None:
    texts = [f"{'x' * n}" for n in range(1, 200)]  # more than one batch
    body = {"model": "text_embedding", "input": texts, "dimensions": 3, "encoding_format": "float"}
    response = await raw(served, "/v1/embeddings", body)
    answer = CreateEmbeddingResponse.model_validate(response.json())
    assert [row.embedding for row in answer.data] == [[float(len(t)), 0.1, -1.0] for t in texts]
    # The client asks for base64 of its own accord.
    packed = await served.openai().embeddings.create(model="text_embedding", input="four")
    assert packed.data[0].embedding == pytest.approx(np.array([4, 0.1, -1], "<f4").tolist())


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]]])
async def test_token_ids_are_refused_with_what_to_send(served: Served, ids: Any) -> None:
    body = {"model": "text_embedding", "input": ids}
    error = (await raw(served, "/v1/embeddings", body)).json()["error"]
    assert error["param"] == "input" and "check_embedding_ctx_length=False" in error["message"]
    error = (await raw(served, "/v1/completions", {"model": "echolm", "prompt": ids})).json()[
        "error"
    ]
    assert error["param"] == "prompt" and "token ids" in error["message"]


async def test_fields_of_vllm(served: Served) -> None:
    await raw(served, "/v1/chat/completions", chat(min_tokens=3, repetition_penalty=1.5))
    await raw(served, "/v1/chat/completions", chat(min_tokens=0, repetition_penalty=1.0))
    await raw(served, "/v1/chat/completions", chat(ignore_eos=True, max_completion_tokens=9))
    given, neutral, whole = served.backend.asked
    assert (given["min_tokens"], given["repetition_penalty"]) == (3, 1.5)
    assert whole["min_tokens"] == whole["max_tokens"] == 9
    assert not {"min_tokens", "repetition_penalty"} & neutral.keys()


async def test_top_k_of_minus_one_sets_no_bound(served: Served) -> None:
    await raw(served, "/v1/chat/completions", chat(top_k=-1))
    assert served.backend.asked[0]["top_k"] == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 2}, "dimensions"),
        ({"input": ""}, "input[0]"),
        ({"input": ["a", "x" * 40_000]}, "input[1]"),
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input"),
        ({"model": "echolm"}, "model"),
    ],
)
async def test_bad_embeddings(served: Served, fields: Any, param: str) -> None:
    body = {"model": "text_embedding", "input": "a", **fields}
    response = await raw(served, "/v1/embeddings", body)
    assert response.status_code == (404 if param == "model" else 400)
    assert response.json()["error"]["param"] == param


async def test_models(served: Served) -> None:
    client = served.openai()
    found = [model.id async for model in client.models.list()]
    weighted = ["echolm-0", "echolm-0.2", "echolm-1"]
    assert found == ["echolm", *weighted, "small_llm", "large_llm", "text_embedding"]
    assert (await client.models.retrieve("small_llm")).object == "model"
    for name, weight in (("echolm", 0.05), ("echolm-0.2", 0.2), ("echolm-12.75", 12.75)):
        extra: Any = (await client.models.retrieve(name)).model_extra
        assert extra["echolm"] == {"cost_weight": weight}
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("gpt-4o")
    assert missing.value.code == "model_not_found"


async def test_a_model_name_can_hold_a_cost_weight(served: Served) -> None:
    await raw(served, "/v1/chat/completions", {**chat(), "model": "echolm-0.25"})
    await raw(served, "/v1/completions", {"model": "echolm-0", "prompt": "a"})
    assert [inputs["cost_weight"] for inputs in served.backend.asked] == [0.25, 0.0]
    assert not any("llm" in inputs for inputs in served.backend.asked)


async def test_an_unknown_model_is_not_found(served: Served) -> None:
    for model in ("gpt-4o", "echolm-", "echolm--1", "echolm-1e9", "echolm-1000", "text_embedding"):
        with pytest.raises(openai.NotFoundError) as missing:
            await served.openai().chat.completions.create(model=model, messages=USER)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequestError.of("stop_words", "at most 16", 20), 400, "invalid_value"),
        (ContextLengthError("stop_words: expected less"), 400, "context_length_exceeded"),
        (UnavailableError("large_llm: down"), 503, "unavailable"),
        (EchoError("odd"), 500, "internal_error"),
        (RuntimeError("a bug"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_have_openais_form(
    served: Served, error: Exception, status: int, code: str, stream: bool
) -> None:
    served.backend.fails = error
    response = await raw(served, "/v1/chat/completions", chat(stream=stream))
    assert response.status_code == status
    told = response.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert told["code"] == code
    assert told["param"] == ("stop" if status == 400 else None)
    assert "a bug" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)


async def test_a_request_that_is_too_long_is_told_in_words_that_clients_know(
    served: Served,
) -> None:
    told = "text_input and sampling_param_max_tokens: expected at most 8 tokens together, got 9"
    served.backend.fails = ContextLengthError(told)
    response = await raw(served, "/v1/chat/completions", chat())
    error = response.json()["error"]
    limit = "Input tokens exceed the configured limit"
    assert error["message"] == (
        f"{limit}: messages and max_tokens: expected at most 8 tokens together, got 9"
    )
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", chat(), "messages"),
        ("/v1/completions", {"model": "echolm", "prompt": "hi"}, "prompt"),
    ],
)
async def test_the_field_is_called_what_the_endpoint_calls_it(
    served: Served, path: str, body: Any, name: str
) -> None:
    sent = "text_input: expected stop_words"
    served.backend.fails = InvalidRequestError.of("text_input", "less", sent)
    for fails_after in (0, 1):  # a stream that has begun ends with the error
        served.backend.fails_after = fails_after
        text = (await raw(served, path, {**body, "stream": True})).text
        error = json.loads(text[text.index('{"error"') :])["error"]
        assert error["param"] == name
        assert error["message"] == f"{name}: expected less, got {sent}"
    served.backend.fails = ContextLengthError("text_input and sampling_param_max_tokens: expected")
    error = (await raw(served, path, body)).json()["error"]
    assert error["param"] == name
    assert error["message"].endswith(f"limit: {name} and max_tokens: expected")


async def test_a_stream_that_fails_midway_ends_with_an_error(served: Served) -> None:
    served.backend.fails, served.backend.fails_after = UnavailableError("small_llm: down"), 2
    stream = await served.openai().chat.completions.create(
        model="echolm", messages=USER, stream=True
    )
    texts = []
    with pytest.raises(openai.APIError, match="small_llm: down"):
        async for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["Use ", "the "]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
async def test_a_client_that_goes_away_ends_the_generation(
    served: Served, stream: bool, n: int
) -> None:
    served.backend.hangs = True
    async with served.http() as client:
        body = chat(stream=stream, n=n)
        asking = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
        await served.backend.began.wait()
        assert not served.backend.cancelled.is_set()
        asking.cancel()
        await asyncio.wait_for(served.backend.cancelled.wait(), 10)


async def test_feedback_by_token_and_by_id(served: Served) -> None:
    answer = (await raw(served, "/v1/chat/completions", chat(n=2))).json()
    await raw(served, "/v1/feedback", {"feedback_token": "signed", "score": 1})
    served.backend.final = replace(served.backend.final, feedback_token="other")
    other = (await raw(served, "/v1/completions", {"model": "echolm", "prompt": "a"})).json()
    body = {"id": answer["id"], "index": 1, "preferred_over": other["id"]}
    response = await raw(served, "/v1/feedback", body)
    assert response.json() == {"object": "feedback", "accepted": True}
    assert served.backend.rated == [
        {"feedback_token": "signed", "score": 1},
        {"feedback_token": "signed", "preferred_over": "other"},
    ]


async def test_only_the_newest_responses_are_remembered(serve: Callable[..., Any]) -> None:
    served = await serve(remembered_responses=2)
    ids = []
    for number in range(5):
        served.backend.final = Final("a", feedback_token=f"t{number}")
        response = await raw(served, "/v1/chat/completions", chat())
        ids.append(response.json()["id"])
        # Each is written before the next, so that they are pruned.
        assert (await raw(served, "/v1/feedback", {"id": ids[-1], "score": 1})).status_code == 200
        await asyncio.sleep(0.1)
    assert (await raw(served, "/v1/feedback", {"id": ids[-2], "score": 1})).status_code == 200
    missing = await raw(served, "/v1/feedback", {"id": ids[0], "score": 1})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "response_not_found")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"score": 1},
        {"id": "a", "feedback_token": "b", "score": 1},
        {"feedback_token": "b", "score": 2},
        {"feedback_token": "b", "score": 1, "preferred_over": "c"},
        {"feedback_token": "b", "score": 1, "index": -1},
    ],
)
async def test_bad_feedback(served: Served, fields: Any) -> None:
    response = await raw(served, "/v1/feedback", fields)
    assert response.status_code == 400
    assert served.backend.rated == []


async def test_health_readiness_and_metrics(served: Served) -> None:
    await raw(served, "/v1/chat/completions", chat())
    async with served.http() as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        served.backend.is_up = False
        assert (await client.get("/ready")).status_code == 503
        page = (await client.get("/metrics")).text
        schema = (await client.get("/openapi.json")).json()
    counted = 'echolm_gateway_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0'
    assert counted in page
    assert "/v1/feedback" in schema["paths"]
