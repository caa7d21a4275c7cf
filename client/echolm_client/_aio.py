"""The asyncio client."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType

from typing_extensions import Unpack

from echolm_client import _protocol as protocol
from echolm_client._base import BaseClient, BaseStream
from echolm_client._config import CLIENT_TIMEOUT, READY_TIMEOUT_S, ClientTimeout, Endpoint
from echolm_client._errors import Timeout, Unavailable
from echolm_client._metrics import parse_stats
from echolm_client._transport import AsyncTransport, open_async_transport
from echolm_client._types import Answer, GenerateOptions, Message, Stats


class AsyncAnswerStream(BaseStream[AsyncGenerator[protocol.Outputs, None]], AsyncIterator[str]):
    """:class:`AnswerStream` for asyncio::

    async with client.stream("Tell me a story") as stream:
        async for piece in stream:
            print(piece, end="", flush=True)
    print(stream.answer.llm)
    """

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        self._start()
        try:
            async for outputs in self._responses:
                if piece := self._assembly.add(outputs):
                    return piece
            self._finish()
        except BaseException:
            self._over = True
            raise
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the request unless it is complete; no piece comes after that."""
        self._over = True
        await self._responses.aclose()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncClient(BaseClient[AsyncTransport]):
    """:class:`Client` for asyncio; any number of requests at once, in one event loop.

    Cancelling the waiting task, also by ``asyncio.wait_for``, cancels the request on the
    server, except for a unary request over HTTP, which Triton finishes. Arguments and errors
    are those of :class:`Client`. It may be made anywhere; it connects at the first call.

    Example::

        async with AsyncClient("localhost:8001") as client:
            answers = await asyncio.gather(*(client.generate(text) for text in texts))
    """

    @staticmethod
    def _open(endpoint: Endpoint) -> AsyncTransport:
        return open_async_transport(endpoint)

    async def generate(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """As :meth:`Client.generate`."""
        call = protocol.generate_call(text, options, messages=messages)
        started_s = time.perf_counter()
        assembly = protocol.Assembly()
        assembly.add(await self._infer(call, timeout))
        return assembly.answer(time.perf_counter() - started_s)

    def stream(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> AsyncAnswerStream:
        """As :meth:`Client.stream`."""
        call = protocol.generate_call(text, options, messages=messages, stream=True)
        return AsyncAnswerStream(self._transport.stream(call, self._limit(timeout)))

    async def rate(
        self,
        rated: str | Answer,
        score: float,
        *,
        tenant: str | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
    ) -> bool:
        """As :meth:`Client.rate`."""
        call = protocol.rating_call(rated, score, tenant)
        return protocol.accepted(await self._infer(call, timeout))

    async def prefer(
        self,
        better: str | Answer,
        over: str | Answer,
        *,
        tenant: str | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
    ) -> bool:
        """As :meth:`Client.prefer`."""
        call = protocol.preference_call(better, over, tenant)
        return protocol.accepted(await self._infer(call, timeout))

    async def stats(self, *, timeout: float | ClientTimeout | None = CLIENT_TIMEOUT) -> Stats:
        """As :meth:`Client.stats`."""
        return parse_stats(await self._transport.fetch(self._metrics_url, self._limit(timeout)))

    async def is_ready(self, *, timeout: float | ClientTimeout | None = READY_TIMEOUT_S) -> bool:
        """As :meth:`Client.is_ready`."""
        limit = self._limit(timeout)
        try:
            return await self._transport.is_ready(protocol.ECHOLM, limit)
        except (Unavailable, Timeout):
            return False

    async def aclose(self) -> None:
        """As :meth:`Client.close`."""
        if not self._closed:
            self._closed = True
            await self._transport.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _infer(
        self, call: protocol.Call, timeout: float | ClientTimeout | None
    ) -> protocol.Outputs:
        return await self._transport.infer(call, self._limit(timeout))
