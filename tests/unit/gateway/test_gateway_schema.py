"""All forms of answers have the shape of OpenAI's own types, and one field more."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from echolm.errors import UnavailableError
from echolm.gateway.backend import Final
from echolm.testing.gateway import FakeBackend, chat
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel
from served_gateway import Served

_Type = TypeVar("_Type", bound=BaseModel)

TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97]}
FINALS = {
    "text": Final("Use find.", "small_llm", finish_reason="stop", num_output_tokens=3),
    "cut": Final("Use find.", "small_llm", finish_reason="length"),
    "empty": Final("", "small_llm", finish_reason="stop"),
    "stored": Final("Use find.", "stored", (7,), 0.5, True, "token", "why", "stop", 0, 0),
    "logprobs": Final(
        "Use find.",
        "small_llm",
        finish_reason="stop",
        logprobs=json.dumps(
            [{**TOKEN, "top_logprobs": [TOKEN]}, {**TOKEN, "top_logprobs": []}]
        ).encode(),
    ),
    "tools": Final(
        "",
        "small_llm",
        finish_reason="tool_calls",
        tool_calls=json.dumps(
            [
                {"id": f"c{k}", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                for k in range(2)
            ]
        ).encode(),
    ),
}


def strictly(kind: type[_Type], value: Any) -> _Type:
    """The value as one of OpenAI's types, which has no other fields but `echolm`."""
    made = kind.model_validate(value, strict=True)
    _check_extra(made)
    return made


def _check_extra(value: Any) -> None:
    if isinstance(value, BaseModel):
        assert set(value.model_extra or ()) <= {"echolm"}
        for name in type(value).model_fields:
            _check_extra(getattr(value, name))
    elif isinstance(value, list):
        for one in value:
            _check_extra(one)


def test_what_is_checked_here_can_fail() -> None:
    model = {"id": "a", "object": "model", "created": 0, "owned_by": "b"}
    strictly(Model, {**model, "echolm": {"any": "thing"}})
    with pytest.raises(AssertionError):
        strictly(Model, {**model, "more": 1})
    with pytest.raises(ValueError):
        strictly(Model, {**model, "created": "0"})


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("usage", [None, {"include_usage": True}])
@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_answers(
    serve: Callable[..., Any], path: str, final: str, usage: Any, n: int
) -> None:
    served: Served = await serve(FakeBackend(FINALS[final]))
    body = {**chat(n=n)} if "chat" in path else {"model": "echolm", "prompt": "a", "n": n}
    whole, chunk = (
        (ChatCompletion, ChatCompletionChunk) if "chat" in path else (Completion, Completion)
    )
    async with served.http() as client:
        answer = strictly(whole, (await client.post(path, json=body)).json())
        asked = {**body, "stream": True, "stream_options": usage}
        streamed = (await client.post(path, json=asked)).text
    assert len(answer.choices) == n
    *events, done, rest = streamed.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    read = [json.loads(event.removeprefix("data: ")) for event in events]
    for choice in [choice for event in read for choice in event["choices"]]:
        if chunk is Completion:  # OpenAI's type has no null here, which its API sends until the end
            choice["finish_reason"] = choice["finish_reason"] or "stop"
    chunks = [strictly(chunk, event) for event in read]
    # Together the chunks say what the whole answer does.
    reasons = {c.index: c.finish_reason for k in chunks for c in k.choices if c.finish_reason}
    assert reasons == {choice.index: choice.finish_reason for choice in answer.choices}
    assert (chunks[-1].usage is not None) == (usage is not None)
    if chunk is ChatCompletionChunk:
        deltas = [c.delta for k in chunks for c in k.choices if c.index == 0]
        text = "".join(delta.content or "" for delta in deltas)
        assert text == (answer.choices[0].message.content or "")
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        assert len(calls) == len(answer.choices[0].message.tool_calls or ())


async def test_embeddings_models_and_errors(served: Served) -> None:
    async with served.http() as client:
        for form in ("float", "base64"):
            body = {"model": "text_embedding", "input": ["a", "b"], "encoding_format": form}
            answer = (await client.post("/v1/embeddings", json=body)).json()
            if form == "base64":  # OpenAI's type is that of decoded vectors
                for row in answer["data"]:
                    row["embedding"] = []
            strictly(CreateEmbeddingResponse, answer)
        listed = (await client.get("/v1/models")).json()
        assert listed.keys() == {"object", "data"}
        for model in listed["data"]:
            named = (await client.get(f"/v1/models/{model['id']}")).json()
            assert strictly(Model, model) == strictly(Model, named)
        for body in (chat(model="none"), chat(temperature=9), {}):
            error = (await client.post("/v1/chat/completions", json=body)).json()
            strictly(ErrorObject, error["error"])
        served.backend.fails, served.backend.fails_after = UnavailableError("down"), 1
        streamed = (await client.post("/v1/chat/completions", json=chat(stream=True))).text
        strictly(ErrorObject, json.loads(streamed.split("data: ")[-1])["error"])
