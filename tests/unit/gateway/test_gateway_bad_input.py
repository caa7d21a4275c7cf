"""What a caller can send wrong: refused with OpenAI's error, before a model is asked."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable
from typing import Any

import pytest
from echolm.testing.gateway import chat
from served_gateway import Served

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def messages(*given: dict[str, Any]) -> dict[str, Any]:
    return {"model": "echolm", "messages": list(given)}


CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
BAD_FIELDS: list[tuple[Any, str]] = [
    ([], ""),
    ({}, "model"),
    ({"messages": chat()["messages"]}, "model"),
    (chat(model=None), "model"),
    (chat(temperature=3), "temperature"),
    (chat(temperature="1"), "temperature"),
    (chat(top_p=0), "top_p"),
    (chat(n=0), "n"),
    (chat(n=33), "n"),
    (chat(n=True), "n"),
    (chat(max_tokens=0), "max_tokens"),
    (chat(max_tokens=2**40), "max_tokens"),
    (chat(max_tokens=3, max_completion_tokens=4), "max_tokens"),
    (chat(seed=2**64), "seed"),
    (chat(stop=[1]), "stop[0]"),
    (chat(stop=["a", ""]), "stop[1]"),
    (chat(stop=["a"] * 65), "stop"),
    (chat(presence_penalty=2.1), "presence_penalty"),
    (chat(tools=[TOOL], parallel_tool_calls=False), "parallel_tool_calls"),
    (chat(top_k=-2), "top_k"),
    (chat(ignore_eos=True), "ignore_eos"),
    (chat(repetition_penalty=0), "repetition_penalty"),
    (chat(top_logprobs=2), "top_logprobs"),
    (chat(response_format={"type": "xml"}), "response_format.type"),
    (chat(response_format={"type": "json_schema"}), "response_format"),
    (chat(tools=[{"type": "function"}]), "tools[0].function"),
    (chat(tool_choice="required"), "tool_choice"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (chat(stream=True, stream_options={"a": 1}), "stream_options.a"),
    (chat(logit_bias={"1": 5}), "logit_bias"),
    (chat(reasoning_effort="high"), "reasoning_effort"),
    (chat(modalities=["text", "audio"]), "modalities"),
    (chat(functions=[{"name": "f"}]), "functions"),
    (chat(frobnicate=1), "frobnicate"),
    (chat(llm="gpt-4o", model="small_llm"), "llm"),
    (chat(cache_control="never"), "cache_control"),
    (chat(tenant=""), "tenant"),
    (chat(tenant="x" * 257), "tenant"),
    (chat(messages="hello"), "messages"),
    (chat(messages=[]), "messages"),
    (chat(messages=["hello"]), "messages[0]"),
    (chat(messages=[{"role": "user", "content": "x"}] * 1_025), "messages"),
    (chat(""), "messages[0].content"),
    (messages({"role": "robot", "content": "a"}), "messages[0].role"),
    (messages({"role": "assistant", "content": "a"}), "messages"),
    (messages({"role": "tool", "content": "a", "tool_call_id": "c"}), "messages[0].tool_call_id"),
    (
        messages({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        "messages[0].content[0]",
    ),
    (
        messages(
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        ),
        "messages",
    ),
]


@pytest.mark.parametrize(("body", "param"), BAD_FIELDS)
async def test_a_wrong_field_is_named(served: Served, body: Any, param: str) -> None:
    async with served.http() as client:
        response = await client.post(PATH, json=body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert (error["param"] or "") == param, error
        assert error["type"] == "invalid_request_error"
        assert error["message"]
        assert served.backend.asked == []
        assert (await client.post(PATH, json=chat())).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {}, "modalities": ["text"], "service_tier": "auto"},
        {"parallel_tool_calls": False, "tools": []},
        {"parallel_tool_calls": True, "reasoning_effort": None, "audio": None},
        {"safety_identifier": "a", "prompt_cache_key": "b", "user": "c"},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "top_logprobs": None},
        {"tools": None, "tool_choice": "auto", "response_format": {"type": "text"}},
        {"metadata": {"any": {"depth": [1]}}},
    ],
)
async def test_fields_that_ask_for_nothing_are_taken(served: Served, fields: Any) -> None:
    async with served.http() as client:
        assert (await client.post(PATH, json=chat(**fields))).status_code == 200
    assert served.backend.asked[0].keys() == {"messages", "tenant"}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"null", 400),
        (b'{"model": NaN}', 400),
        (b'{"model": "echolm", "messages": "\xff\xfe"}', 400),
        (b'{"model": "echolm", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b"[" * 100_000 + b"]" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (json.dumps(chat(metadata={"a": [[]] * 30_000})).encode(), 400),
        (json.dumps(chat(metadata={"a": list(range(30_000))})).encode(), 400),
        (b'{"metadata":' + b"[" * 70 + b"]" * 70 + b"}", 400),
        (json.dumps(chat("x" * 10_000_000)).encode(), 413),
    ],
    ids=range(12),
)
async def test_a_body_that_is_no_request(served: Served, content: bytes, status: int) -> None:
    async with served.http() as client:
        response = await client.post(PATH, content=content, headers=JSON)
        assert response.status_code == status
        assert response.json()["error"]["message"]
        assert (await client.post(PATH, json=chat())).status_code == 200
    assert len(served.backend.asked) == 1


async def test_many_brackets_in_a_text_are_no_depth(served: Served) -> None:
    async with served.http() as client:
        assert (await client.post(PATH, json=chat("[{," * 9_000))).status_code == 200


async def test_chunked_bodies_are_bounded_as_well(serve: Callable[..., Any]) -> None:
    served = await serve(max_body_bytes=2_000)

    async def parts(text: str) -> Any:
        body = json.dumps(chat(text)).encode()
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with served.http() as client:
        response = await client.post(PATH, content=parts("x" * 500), headers=JSON)
        assert response.status_code == 200
        response = await client.post(PATH, content=parts("x" * 5_000), headers=JSON)
        assert response.status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
async def test_another_type_of_body_is_refused(served: Served, headers: Any) -> None:
    async with served.http() as client:
        content = json.dumps(chat()).encode()
        response = await client.post(PATH, content=content, headers=headers)
    assert response.status_code == 415
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_another_method_or_path(served: Served) -> None:
    async with served.http() as client:
        assert (await client.get(PATH)).status_code == 405
        missing = await client.post("/v1/images/generations", json={})
    assert missing.status_code == 404
    assert "/v1/images/generations" in missing.json()["error"]["message"]


async def test_random_bodies_never_fail_the_gateway(served: Served) -> None:
    rng = random.Random(0)
    body = json.dumps(chat(stop=["a"], stream=False, metadata={"a": [1, 2.5, None]})).encode()
    async with served.http() as client:
        for _ in range(300):
            changed = bytearray(body)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            response = await client.post(PATH, content=bytes(changed), headers=JSON)
            assert response.status_code in (200, 400, 404), changed
            assert response.json()


# ---- Connections, past any client library


async def talk(served: Served, data: bytes) -> bytes:
    """What the gateway sends before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000, 431),
        (b"GET /" + b"a" * 100_000, 431),
        (b"GET /health HTTP/1.1\r\n" + b"x: a\r\n" * 101 + b"\r\n", 431),
        (b"rubbish\r\n\r\n", 400),
        (b"POST " + PATH.encode() + b" HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
    ],
    ids=range(6),
)
async def test_a_bad_head_is_refused(served: Served, head: bytes, status: int) -> None:
    got = await talk(served, head)
    assert got.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"]
    async with served.http() as client:
        assert (await client.get("/health")).status_code == 200


async def test_a_head_that_does_not_end_is_not_waited_for(serve: Callable[..., Any]) -> None:
    served = await serve(header_timeout_s=0.1)
    assert (await talk(served, b"GET /health HTTP/1.1\r\nx")).startswith(b"HTTP/1.1 408 ")
    assert await talk(served, b"") == b""


async def test_a_body_that_does_not_come_is_not_waited_for(serve: Callable[..., Any]) -> None:
    served = await serve(body_timeout_s=0.1)
    head = f"POST {PATH} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
    got = await talk(served, head.encode() + b"{")
    assert got.startswith(b"HTTP/1.1 408 ")
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
    assert not served.server.server_state.connections


async def test_a_client_that_vanished_is_asked_whether_it_is_there(served: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    while not served.server.server_state.connections:
        await asyncio.sleep(0.01)
    [protocol] = served.server.server_state.connections
    connection = protocol.transport.get_extra_info("socket")
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, interval, count = (connection.getsockopt(socket.IPPROTO_TCP, o) for o in options)
    assert idle + count * interval == 60
    writer.close()


@pytest.mark.parametrize("trailer", [b"x: " + b"a" * 1_000_000, b"x: a\r\n" * 200])
async def test_trailers_are_bounded(served: Served, trailer: bytes) -> None:
    head = f"POST {PATH} HTTP/1.1\r\ncontent-type: application/json\r\n"
    head += "transfer-encoding: chunked\r\n\r\n"
    try:
        got = await talk(served, head.encode() + b"1\r\n{\r\n0\r\n" + trailer)
        assert got.startswith(b"HTTP/1.1 431 ")
    except ConnectionResetError:
        pass  # what was not read any more takes the answer with it
    while served.server.server_state.connections:
        await asyncio.sleep(0.01)


async def test_stray_bytes_do_not_keep_an_idle_connection(serve: Callable[..., Any]) -> None:
    served = await serve(keep_alive_s=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET /health HTTP/1.1\r\n\r\n")
    await reader.readuntil(b'"}')
    writer.write(b"\r\n")
    await asyncio.wait_for(reader.read(), 4)  # uvicorn's own timer would take 5 s
    writer.close()


async def test_connections_are_bounded(serve: Callable[..., Any]) -> None:
    served = await serve(max_connections=2)
    open_ones = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(2)]
    while len(served.server.server_state.connections) < 2:
        await asyncio.sleep(0.01)
    got = await talk(served, b"GET /health HTTP/1.1\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after" in got
    for _, writer in open_ones:
        writer.close()
    while served.server.server_state.connections:
        await asyncio.sleep(0.01)
    async with served.http() as client:
        assert (await client.get("/health")).status_code == 200


async def test_a_stream_that_nobody_reads_is_cut(serve: Callable[..., Any]) -> None:
    served = await serve(write_timeout_s=0.2)
    text = "word " * 100_000
    served.backend.final = served.backend.final.__class__(text, llm="small_llm")
    served.backend.hangs = True
    body = json.dumps(chat(stream=True)).encode()
    head = f"POST {PATH} HTTP/1.1\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1_024)
    writer.write(head.encode() + body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    connections = served.server.server_state.connections
    while connections or served.server.server_state.tasks:
        await asyncio.sleep(0.05)
    # The pieces are not gathered: the model was asked for no more than what could be sent.
    assert not served.backend.began.is_set()
    writer.close()


async def test_keys_and_texts_do_not_reach_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.backend.fails = RuntimeError("a bug")
    async with served.http("sk-echolm-secret") as client:
        assert (await client.post(PATH, json=chat("confidential"))).status_code == 500
    assert "a bug" in caplog.text
    assert "confidential" not in caplog.text and "sk-echolm-secret" not in caplog.text
