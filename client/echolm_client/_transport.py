"""The narrow interface between the clients and the network, and fakes for tests.

A transport moves tensors and raises this package's errors. It never retries.

``timeout`` is the same everywhere: the seconds from sending a request to the end of its response,
of a stream to its last response, however long the caller takes between two of them; None sets no
limit. When it is over, :class:`~echolm_client.Timeout` is raised.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from typing import Protocol

from echolm_client._config import Endpoint
from echolm_client._protocol import Call, Outputs


class Transport(Protocol):
    """Synchronous; safe to use from several threads."""

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        """Send a request and wait for its response."""

    def stream(self, call: Call, timeout: float | None) -> Generator[Outputs, None, None]:
        """Send a request when first advanced; yield its responses. Closing cancels it."""

    def is_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the server answers and the model is loaded."""

    def fetch(self, url: str, timeout: float | None) -> str:
        """GET a text page over HTTP."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """The same for asyncio. It connects on first use, in the event loop that runs then."""

    async def infer(self, call: Call, timeout: float | None) -> Outputs:
        """As :meth:`Transport.infer`; cancelling the task cancels the request."""

    def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        """As :meth:`Transport.stream`."""

    async def is_ready(self, model: str, timeout: float | None) -> bool:
        """As :meth:`Transport.is_ready`."""

    async def fetch(self, url: str, timeout: float | None) -> str:
        """As :meth:`Transport.fetch`."""

    async def aclose(self) -> None:
        """As :meth:`Transport.close`."""


# Imported on demand: the HTTP stack costs a third of a second that gRPC users need not spend.
def open_transport(endpoint: Endpoint) -> Transport:
    """The transport that the endpoint's scheme asks for."""
    if endpoint.is_grpc:
        from echolm_client._grpc import GrpcTransport

        return GrpcTransport(endpoint)
    from echolm_client._http import HttpTransport

    return HttpTransport(endpoint)


def open_async_transport(endpoint: Endpoint) -> AsyncTransport:
    """The asyncio transport that the endpoint's scheme asks for."""
    if endpoint.is_grpc:
        from echolm_client._grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint)
    from echolm_client._http import AsyncHttpTransport

    return AsyncHttpTransport(endpoint)


Handler = Callable[[Call], Iterable[Outputs]]


class FakeTransport:
    """Answers from a function instead of a server; for tests of code that uses a client.

    Args:
        handler: gets each request and gives its responses: one, or several for a stream. It
            may raise this package's errors, also half-way.
        page: what :meth:`fetch` returns.

    Attributes:
        calls: the requests so far.
        cancelled: how many streams were left before their end.
    """

    def __init__(self, handler: Handler, page: str = "", ready: bool = True) -> None:
        self.calls: list[Call] = []
        self.cancelled = 0
        self.closed = 0
        self._handler = handler
        self._page = page
        self._ready = ready

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        self.calls.append(call)
        (outputs,) = self._handler(call)
        return outputs

    def stream(self, call: Call, timeout: float | None) -> Generator[Outputs, None, None]:
        self.calls.append(call)
        try:
            yield from self._handler(call)
        except GeneratorExit:
            self.cancelled += 1
            raise

    def is_ready(self, model: str, timeout: float | None) -> bool:
        return self._ready

    def fetch(self, url: str, timeout: float | None) -> str:
        return self._page

    def close(self) -> None:
        self.closed += 1


class AsyncFakeTransport:
    """:class:`FakeTransport` for :class:`AsyncClient`; ``sync`` holds what it recorded."""

    def __init__(self, handler: Handler, page: str = "", ready: bool = True) -> None:
        self.sync = FakeTransport(handler, page, ready)

    async def infer(self, call: Call, timeout: float | None) -> Outputs:
        return self.sync.infer(call, timeout)

    async def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        responses = self.sync.stream(call, timeout)
        try:
            for outputs in responses:
                yield outputs
        finally:
            responses.close()

    async def is_ready(self, model: str, timeout: float | None) -> bool:
        return self.sync.is_ready(model, timeout)

    async def fetch(self, url: str, timeout: float | None) -> str:
        return self.sync.fetch(url, timeout)

    async def aclose(self) -> None:
        self.sync.close()
