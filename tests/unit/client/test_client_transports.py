"""What the transports write and read, and what they make of a server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from echolm_client import (
    AsyncClient,
    Client,
    EchoLMError,
    InvalidRequest,
    ServerError,
    Timeout,
    Unavailable,
)
from echolm_client import _grpc as over_grpc
from echolm_client import _http as over_http
from echolm_client._protocol import generate_call
from tritonclient.grpc import service_pb2

CALL = generate_call("é", {"max_tokens": 7, "seed": 2**64 - 1, "stop_words": ["a", "b"]})


def test_grpc_request() -> None:
    request = over_grpc.encode(CALL)
    shapes = {i.name: (i.datatype, list(i.shape)) for i in request.inputs}
    assert request.model_name == "echolm"
    assert shapes == {
        "text_input": ("BYTES", [1, 1]),
        "max_tokens": ("INT32", [1, 1]),
        "seed": ("UINT64", [1, 1]),
        "stop_words": ("BYTES", [1, 2]),
    }
    assert list(request.raw_input_contents) == [
        b"\x02\0\0\0\xc3\xa9",
        b"\x07\0\0\0",
        b"\xff" * 8,
        b"\x01\0\0\0a\x01\0\0\0b",
    ]


def test_grpc_response_with_an_empty_tensor() -> None:
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="example_ids", datatype="INT64", shape=[1, 0])
    response.outputs.add(name="llm", datatype="BYTES", shape=[1, 1])
    response.raw_output_contents.extend([b"", b"\x01\0\0\0x"])
    outputs = over_grpc.decode(response)
    assert outputs["example_ids"].size == 0
    assert outputs["llm"].tolist() == [[b"x"]]


def test_grpc_stream_error_without_a_status_is_a_server_error() -> None:
    with pytest.raises(ServerError, match="why"):
        over_grpc.decode_stream(service_pb2.ModelStreamInferResponse(error_message="why"))
    assert over_grpc.decode_stream(service_pb2.ModelStreamInferResponse()) == {}


class Failure(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self.code = lambda: code
        self.details = lambda: details


def test_grpc_errors_keep_kind_and_message() -> None:
    error = over_grpc._error(Failure(grpc.StatusCode.INVALID_ARGUMENT, "why"))
    assert type(error) is InvalidRequest and str(error) == "why"
    assert isinstance(over_grpc._error(Failure(grpc.StatusCode.INTERNAL, None)), ServerError)
    late = over_grpc._error(Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    assert isinstance(late, Timeout)


def test_http_request_is_values_for_a_stream_and_tensors_else() -> None:
    assert json.loads(over_http.encode_json(CALL)) == {
        "text_input": "é",
        "max_tokens": 7,
        "seed": 2**64 - 1,
        "stop_words": ["a", "b"],
    }
    body, headers = over_http.encode(CALL)
    length = int(headers["Inference-Header-Content-Length"])
    described = json.loads(body[:length])
    assert [i["shape"] for i in described["inputs"]] == [[1, 1]] * 3 + [[1, 2]]
    assert body[length:].startswith(b"\x02\0\0\0\xc3\xa9")


def test_events_may_be_cut_anywhere() -> None:
    body = (
        b'data: {"text_output":"\xc3\xa9","example_ids":7}\n\n'
        b'data: {"text_output":"","example_ids":[],"parameters":{}}\n\n'
    )
    events = over_http.Events()
    outputs = [o for i in range(len(body)) for o in events.feed(body[i : i + 1])]
    assert [o["text_output"].tolist() for o in outputs] == [["é"], [""]]
    assert [o["example_ids"].tolist() for o in outputs] == [[7], []]
    assert "parameters" not in outputs[1]


@pytest.mark.parametrize("body", [b'data: {"error":"why"}\n', b"data: why\n"])
def test_an_event_that_is_an_error_or_no_json_raises(body: bytes) -> None:
    with pytest.raises(ServerError, match="why"):
        list(over_http.Events().feed(body))


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error":"why"}', InvalidRequest),
        (503, b'{"error":"why"}', Unavailable),
        (502, b"<html>why</html>", Unavailable),
        (500, b'["why"]', ServerError),
        # Triton's status for whatever error a streaming model reports.
        (400, b'data: {"error":"why"}\n\n', ServerError),
    ],
)
def test_http_errors_keep_kind_and_message(
    status: int, body: bytes, kind: type[EchoLMError]
) -> None:
    with pytest.raises(EchoLMError, match="why") as raised:
        over_http.check(status, body)
    assert type(raised.value) is kind


class Misbehaving(BaseHTTPRequestHandler):
    """Streams an event and then does what the requested text says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text_input"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        event = b'data: {"text_output":"x"}\n\n'
        chunk = b"%x\r\n%s\r\n" % (len(event), event)
        self.close_connection = True
        try:
            self.wfile.write(chunk)
            for _ in range(40 if asked == "trickle" else 0):
                time.sleep(0.05)
                self.wfile.write(chunk)
        except OSError:  # The client has left, as it should.
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def consume(client: AsyncClient, asked: str, timeout: float | None) -> list[str]:
    async with client, client.stream(asked, timeout=timeout) as stream:
        return [piece async for piece in stream]


@pytest.mark.parametrize(("asked", "kind"), [("truncate", Unavailable), ("trickle", Timeout)])
def test_a_stream_cut_off_or_too_slow_is_an_error(
    misbehaving: str, asked: str, kind: type[EchoLMError]
) -> None:
    with Client(misbehaving) as client, pytest.raises(kind):
        list(client.stream(asked, timeout=0.4))
    with pytest.raises(kind):
        asyncio.run(consume(AsyncClient(misbehaving), asked, 0.4))


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_nobody_there_is_unavailable(url: str) -> None:
    async def use() -> None:
        async with AsyncClient(url, metrics_url="http://127.0.0.1:1/metrics") as client:
            with pytest.raises(Unavailable):
                await client.generate("x")
            with pytest.raises(Unavailable):
                await client.stats()
            assert not await client.is_ready()

    with Client(url, metrics_url="http://127.0.0.1:1/metrics") as client:
        with pytest.raises(Unavailable):
            client.generate("x")
        with pytest.raises(Unavailable):
            list(client.stream("x"))
        with pytest.raises(Unavailable):
            client.stats()
        assert not client.is_ready()
    asyncio.run(use())


def test_encoded_bytes_are_not_views_of_objects() -> None:
    # serialize_byte_tensor gives an object array; its item is what goes on the wire.
    assert all(isinstance(raw, bytes) for raw in over_grpc.encode(CALL).raw_input_contents)
    assert CALL.inputs[0].array.dtype == np.object_
