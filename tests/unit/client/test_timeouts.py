"""``timeout`` is the time of the whole call, over every transport, in unary calls and streams."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from echolm_client import AsyncClient, Client, FakeTransport, Timeout
from echolm_client._grpc import decode
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

TIMEOUT_S = 0.5
SLACK_S = 0.4
_PAUSE_S = 0.1
_LONG_S = 3.0


def pieces(asked: str) -> Iterator[str]:
    """What the servers send for a text: a trickle, or something and then nothing for long."""
    yield "x"
    if asked == "silence":
        time.sleep(_LONG_S)
        return
    until = time.monotonic() + (_LONG_S if asked == "trickle" else 0.0)
    while time.monotonic() < until:
        time.sleep(_PAUSE_S)
        yield "x"


class Http(BaseHTTPRequestHandler):
    """A stream of events; or a body of one that is as slow."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_stream = self.path.endswith("generate_stream")
        asked = json.loads(body)["text_input"] if is_stream else body.split(b"\0")[-1].decode()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        if "close" in asked:
            self.send_header("Connection", "close")
        self.end_headers()
        try:
            for piece in pieces(asked.removesuffix(" close")):
                data = f'data: {{"text_output":"{piece}"}}\n\n' if is_stream else piece
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data.encode()))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # The client has left, as it should.
            self.close_connection = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            for piece in pieces("trickle"):
                self.wfile.write(piece.encode())
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        return response("".join(pieces(asked_of(request))))

    def ModelStreamInfer(self, requests: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for piece in pieces(asked_of(next(requests))):
            yield service_pb2.ModelStreamInferResponse(infer_response=response(piece))


def asked_of(request: Any) -> str:
    return bytes(request.raw_input_contents[0][4:]).decode().removesuffix(" close")


def response(text: str) -> Any:
    message = service_pb2.ModelInferResponse()
    message.outputs.add(name="text_output", datatype="BYTES", shape=[1, 1])
    array = np.array([[text.encode()]], dtype=object)
    message.raw_output_contents.append(serialize_byte_tensor(array).item())
    assert decode(message)["text_output"].tolist() == [[text.encode()]]
    return message


@pytest.fixture(scope="module")
def http_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def grpc_url() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Grpc(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def seconds_until_timeout(url: str, use: str, asked: str, pause_s: float = 0.0) -> float:
    """How long a call takes to fail with ``Timeout``.

    Args:
        use: a method of the client, or ``async`` and one.
        pause_s: what the caller does between two pieces of a stream.
    """
    options: Any = {"timeout": TIMEOUT_S, "metrics_url": f"{url}/metrics"}

    def call() -> float:
        with Client(url, **options) as client:
            started = time.monotonic()
            with pytest.raises(Timeout):
                if use == "stream":
                    for _ in client.stream(asked):
                        time.sleep(pause_s)
                elif use == "stats":
                    client.stats()
                else:
                    client.generate(asked)
            return time.monotonic() - started

    async def call_async() -> float:
        async with AsyncClient(url, **options) as client:
            started = time.monotonic()
            with pytest.raises(Timeout):
                if use == "async stream":
                    async for _ in client.stream(asked):
                        await asyncio.sleep(pause_s)
                elif use == "async stats":
                    await client.stats()
                else:
                    await client.generate(asked)
            return time.monotonic() - started

    return asyncio.run(call_async()) if use.startswith("async ") else call()


@pytest.mark.parametrize("asked", ["trickle", "silence", "trickle close", "silence close"])
@pytest.mark.parametrize("use", ["generate", "stream", "async generate", "async stream"])
def test_the_whole_call_has_the_time_and_no_more(url: str, use: str, asked: str) -> None:
    assert TIMEOUT_S - 0.05 < seconds_until_timeout(url, use, asked) < TIMEOUT_S + SLACK_S


@pytest.mark.parametrize("use", ["stats", "async stats"])
def test_a_page_has_the_time_and_no_more(http_url: str, use: str) -> None:
    assert TIMEOUT_S - 0.05 < seconds_until_timeout(http_url, use, "") < TIMEOUT_S + SLACK_S


@pytest.mark.parametrize("use", ["stream", "async stream"])
def test_what_the_caller_takes_between_two_pieces_counts(url: str, use: str) -> None:
    pause_s = 0.4
    taken_s = seconds_until_timeout(url, use, "trickle", pause_s)
    assert TIMEOUT_S - 0.05 < taken_s < TIMEOUT_S + pause_s + SLACK_S


def test_a_call_in_time_is_an_answer(url: str) -> None:
    with Client(url, timeout=5) as client:
        with client.stream("at once") as stream:
            assert list(stream) == ["x"]
        with client.stream("at once", timeout=None) as stream:
            assert list(stream) == ["x"]


class Recording(FakeTransport):
    """Notes the limits that it is given."""

    def __init__(self) -> None:
        super().__init__(lambda call: [{"text_output": np.array([["x"]], dtype=object)}])
        self.limits: list[float | None] = []

    def infer(self, call: Any, timeout: float | None) -> Any:
        self.limits.append(timeout)
        return super().infer(call, timeout)

    def is_ready(self, model: str, timeout: float | None) -> bool:
        self.limits.append(timeout)
        return True


def test_none_is_no_limit_for_a_client_and_for_a_call() -> None:
    transport = Recording()
    client = Client(transport=transport, timeout=3)
    client.generate("x")
    client.generate("x", timeout=1)
    client.generate("x", timeout=None)
    client.is_ready(timeout=None)
    Client(transport=transport, timeout=None).generate("x")
    assert transport.limits == [3, 1, None, None, None]


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout: expected seconds above 0"):
        Client(timeout=timeout)
    with pytest.raises(ValueError, match="timeout: expected seconds above 0"):
        Client(transport=Recording()).generate("x", timeout=timeout)
