"""The asyncio client."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from echolm_client import _protocol as protocol
from echolm_client._config import DEFAULT_TIMEOUT_S, DEFAULT_URL, TLS, Endpoint
from echolm_client._errors import Timeout, Unavailable
from echolm_client._metrics import parse_stats
from echolm_client._transport import AsyncTransport, open_async_transport
from echolm_client._types import Answer, GenerateOptions, Stats

if TYPE_CHECKING:
    from typing_extensions import Unpack


class AsyncAnswerStream(AsyncIterator[str]):
    """:class:`AnswerStream` for asyncio::

    async with client.stream("Tell me a story") as stream:
        async for piece in stream:
            print(piece, end="", flush=True)
    print(stream.answer.llm)
    """

    def __init__(self, responses: AsyncGenerator[protocol.Outputs, None]) -> None:
        self._responses = responses
        self._assembly = protocol.Assembly()
        self._started_s: float | None = None
        self._over = False
        self._answer: Answer | None = None

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        if self._started_s is None:
            self._started_s = time.perf_counter()
        try:
            async for outputs in self._responses:
                if piece := self._assembly.add(outputs):
                    return piece
            self._answer = self._assembly.answer(time.perf_counter() - self._started_s)
        except BaseException:
            self._over = True
            raise
        self._over = True
        raise StopAsyncIteration

    @property
    def answer(self) -> Answer:
        """The complete answer, once all pieces have been taken.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        if self._answer is None:
            raise RuntimeError("the answer is known only when all pieces have been taken")
        return self._answer

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


class AsyncClient:
    """:class:`Client` for asyncio; any number of requests at once, in one event loop.

    Cancelling the waiting task, also by ``asyncio.wait_for``, cancels the request on the
    server, except for a unary request over HTTP, which Triton finishes. Arguments and errors
    are those of :class:`Client`. It may be made anywhere; it connects at the first call.

    Example::

        async with AsyncClient("localhost:8001") as client:
            answers = await asyncio.gather(*(client.generate(text) for text in texts))
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        metrics_url: str | None = None,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        endpoint = Endpoint.parse(url, tls, headers)
        self._timeout = timeout
        self._metrics_url = metrics_url or endpoint.default_metrics_url
        self._transport = transport or open_async_transport(endpoint)
        self._closed = False

    async def generate(
        self, text: str, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> Answer:
        """As :meth:`Client.generate`."""
        call = protocol.generate_call(text, options)
        started_s = time.perf_counter()
        assembly = protocol.Assembly()
        assembly.add(await self._infer(call, timeout))
        return assembly.answer(time.perf_counter() - started_s)

    def stream(
        self, text: str, *, timeout: float | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncAnswerStream:
        """As :meth:`Client.stream`."""
        call = protocol.generate_call(text, options, stream=True)
        self._refuse_if_closed()
        return AsyncAnswerStream(self._transport.stream(call, self._limit(timeout)))

    async def rate(
        self,
        rated: str | Answer,
        score: float,
        *,
        tenant: str | None = None,
        timeout: float | None = None,
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
        timeout: float | None = None,
    ) -> bool:
        """As :meth:`Client.prefer`."""
        call = protocol.preference_call(better, over, tenant)
        return protocol.accepted(await self._infer(call, timeout))

    async def stats(self, *, timeout: float | None = None) -> Stats:
        """As :meth:`Client.stats`."""
        self._refuse_if_closed()
        return parse_stats(await self._transport.fetch(self._metrics_url, self._limit(timeout)))

    async def is_ready(self, *, timeout: float | None = 5.0) -> bool:
        """As :meth:`Client.is_ready`."""
        self._refuse_if_closed()
        try:
            return await self._transport.is_ready(protocol.ECHOLM, timeout)
        except (Unavailable, Timeout):
            return False

    async def close(self) -> None:
        """As :meth:`Client.close`."""
        if not self._closed:
            self._closed = True
            await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _infer(self, call: protocol.Call, timeout: float | None) -> protocol.Outputs:
        self._refuse_if_closed()
        return await self._transport.infer(call, self._limit(timeout))

    def _limit(self, timeout: float | None) -> float | None:
        return self._timeout if timeout is None else timeout

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")
