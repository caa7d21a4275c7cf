"""The load generator's clients: one for all peers that speak HTTP, and one for gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from echolm_lab.experiments.peers.base import Connect
from echolm_lab.experiments.peers.llm_server import MODEL
from echolm_lab.policies.base import AnswerPolicy, Reply
from echolm_lab.tasks import Item

_TIMEOUT_S = 60.0
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class HttpClient:
    """Posts JSON over connections that are kept and used again; an :class:`AnswerPolicy`.

    Args:
        body: a request's JSON value from its text.
        text: the answer's text from its JSON value.
    """

    name = "http"

    def __init__(
        self,
        port: int,
        path: str,
        body: Callable[[str], Any],
        text: Callable[[Any], str],
        headers: Mapping[str, str],
    ) -> None:
        self._port = port
        self._body = body
        self._text = text
        lines = [f"POST {path} HTTP/1.1", f"host: 127.0.0.1:{port}"]
        lines += ["content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join([*lines, "content-length: "]).encode()
        self._idle: list[_Stream] = []

    async def send(self, item: Item) -> Reply:
        """The answer; OSError or RuntimeError if there is none."""
        stream = await self._connection()
        try:
            answer = await asyncio.wait_for(self._post(stream, item.text), _TIMEOUT_S)
        except BaseException:
            stream[1].close()
            raise
        self._idle.append(stream)
        return Reply(text=answer, llm="")

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()

    async def _connection(self) -> _Stream:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)

    async def _post(self, stream: _Stream, text: str) -> str:
        reader, writer = stream
        body = json.dumps(self._body(text)).encode()
        writer.write(self._head + b"%d\r\n\r\n" % len(body) + body)
        status, size = parse_head(await reader.readuntil(b"\r\n\r\n"))
        answer = await (_chunks(reader) if size is None else reader.readexactly(size))
        if status != 200:
            raise RuntimeError(f"HTTP status: expected 200, got {status}: {answer[:500]!r}")
        return self._text(json.loads(answer))


def parse_head(head: bytes) -> tuple[int, int | None]:
    """Status and body length of a response; None if the body comes in chunks.

    Raises:
        RuntimeError: neither is said.
    """
    first, *headers = head.split(b"\r\n")
    status = int(first.split(b" ")[1])
    for header in headers:
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            return status, int(value)
        if name.lower() == b"transfer-encoding" and value.strip().lower() == b"chunked":
            return status, None
    raise RuntimeError(f"HTTP response: expected content-length or chunks, got {head[:500]!r}")


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


def chat(port: int, key: str = "none", **more: Any) -> Connect:
    """A client of an OpenAI-compatible server's chat completions.

    Args:
        more: further members of a request.
    """

    def body(text: str) -> Any:
        return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}

    def answered(value: Any) -> str:
        return str(value["choices"][0]["message"]["content"])

    headers = {"authorization": f"Bearer {key}"}
    return _http(port, "/v1/chat/completions", body, answered, headers)


def generate(port: int, model: str) -> Connect:
    """A client of Triton's generate extension."""

    def body(text: str) -> Any:
        return {"text_input": text}

    return _http(port, f"/v2/models/{model}/generate", body, lambda v: str(v["text_output"]), {})


def _http(
    port: int,
    path: str,
    body: Callable[[str], Any],
    text: Callable[[Any], str],
    headers: Mapping[str, str],
) -> Connect:
    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[AnswerPolicy]:
        client = HttpClient(port, path, body, text, headers)
        try:
            yield client
        finally:
            client.close()

    return connect


class InferClient:
    """Calls a Triton model over gRPC; an :class:`AnswerPolicy`."""

    name = "grpc"

    def __init__(self, channel: grpc.aio.Channel, model: str) -> None:
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        self._model = model

    async def send(self, item: Item) -> Reply:
        """The answer; grpc.RpcError if there is none."""
        request = service_pb2.ModelInferRequest(model_name=self._model)
        request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
        text = item.text.encode()
        request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
        request.outputs.add(name="text_output")
        response = await self._infer(request, timeout=_TIMEOUT_S)
        return Reply(text=response.raw_output_contents[0][4:].decode(), llm="")


def infer(url: str, model: str) -> Connect:
    """A client of a Triton model over gRPC."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[AnswerPolicy]:
        async with grpc.aio.insecure_channel(url) as channel:
            yield InferClient(channel, model)

    return connect
