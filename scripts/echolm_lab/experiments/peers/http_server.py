"""A JSON server that costs little beside what it serves: HTTP/1.1 on uvloop, keep-alive only."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import uvloop

Handler = Callable[[Any], Awaitable[bytes]]
"""Takes the JSON value of a request's body (None without a body), gives the answer's JSON."""

_MOST_BYTES = 1 << 22
_HEAD_END = b"\r\n\r\n"


class _Connection(asyncio.Protocol):
    """Answers the requests of one connection in their order."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._received = bytearray()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (parsed := parse_request(self._received)) is not None:
            path, body, length = parsed
            del self._received[:length]
            self._waiting.append((path, body))
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._answer())

    async def _answer(self) -> None:
        assert self._transport is not None
        while self._waiting:
            path, body = self._waiting.popleft()
            handler = self._handlers.get(path)
            if handler is None:
                answer, status = b'{"error": "no such path"}', b"404 Not Found"
            else:
                answer, status = await _answer_of(handler, body)
            self._transport.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (status, len(answer), answer)
            )


async def _answer_of(handler: Handler, body: bytes) -> tuple[bytes, bytes]:
    try:
        return await handler(json.loads(body) if body else None), b"200 OK"
    except Exception as error:  # whatever it is, the client gets it and the server goes on
        message = {"error": f"{type(error).__name__}: {error}"}
        return json.dumps(message).encode(), b"500 Internal Server Error"


def parse_request(received: bytearray) -> tuple[str, bytes, int] | None:
    """Path, body and length of the first whole request; None until there is one.

    Raises:
        ValueError: the head or the body is larger than any that a peer sends.
    """
    end = received.find(_HEAD_END)
    if end < 0:
        if len(received) > _MOST_BYTES:
            raise ValueError(f"HTTP request: expected a head, got {len(received)} bytes without")
        return None
    first, *headers = bytes(received[:end]).split(b"\r\n")
    size = 0
    for header in headers:
        name, _, value = header.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    if size > _MOST_BYTES:
        raise ValueError(f"HTTP request: expected at most {_MOST_BYTES} bytes, got {size}")
    start = end + len(_HEAD_END)
    if len(received) < start + size:
        return None
    path = first.split(b" ")[1].decode("latin-1")
    return path, bytes(received[start : start + size]), start + size


async def listen(port: int, handlers: Mapping[str, Handler]) -> asyncio.AbstractServer:
    """A server on 127.0.0.1 in this event loop; port 0 takes a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: _Connection(handlers), "127.0.0.1", port)


def serve(port: int, handlers: Mapping[str, Handler]) -> None:
    """Serve on 127.0.0.1 until the process is stopped."""

    async def run() -> None:
        await (await listen(port, handlers)).serve_forever()

    uvloop.run(run())
