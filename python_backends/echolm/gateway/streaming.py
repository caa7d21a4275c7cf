"""Event streams: what a generator yields goes to the client as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from echolm.errors import EchoError
from echolm.gateway.backend import Backend, Final, Inputs, Piece
from echolm.gateway.connection import Connected
from echolm.gateway.errors import ApiError, api_error, internal
from echolm.gateway.responses import error_event

logger = logging.getLogger("echolm")

GONE = "client_gone"
"""Key of a request's ``state``: whether the client left during the answer."""
_WAITING = 16
"""Most pieces of several answers that wait for the client."""


class EventStream(Response):
    """A response whose status is known with its first event.

    What fails before it has a status of its own; what fails later ends the stream with an event.

    Args:
        events: closed at the end, or when the client goes away.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(headers={"cache-control": "no-cache", **headers})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events) as events:
            with Connected(receive):
                event = await anext(events)
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            try:
                with Connected(receive):
                    while event:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
                        event = await anext(events, b"")
            except ClientDisconnect:
                # Raised from here it would be a failure, since the answer has begun.
                scope["state"][GONE] = True
                return
            except Exception as error:
                event = error_event(_told(error, scope["path"]).body())
            await send({"type": "http.response.body", "body": event})


def _told(error: Exception, path: str) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EchoError):
        return api_error(error, path)
    logger.error("unexpected error in a stream", exc_info=error)
    return internal()


async def merged(
    backend: Backend, rows: Sequence[Inputs]
) -> AsyncGenerator[tuple[int, Piece | Final], None]:
    """The parts of the answers to all rows, with the number of the row, as they come."""
    if len(rows) == 1:
        async with aclosing(backend.stream(rows[0])) as parts:
            async for part in parts:
                yield 0, part
        return
    arrived: asyncio.Queue[tuple[int, Piece | Final | Exception]] = asyncio.Queue(_WAITING)

    async def forward(index: int, inputs: Inputs) -> None:
        try:
            async with aclosing(backend.stream(inputs)) as parts:
                async for part in parts:
                    await arrived.put((index, part))
        except Exception as error:
            await arrived.put((index, error))

    tasks = [asyncio.ensure_future(forward(index, row)) for index, row in enumerate(rows)]
    try:
        missing = len(rows)
        while missing:
            index, came = await arrived.get()
            if isinstance(came, Exception):
                raise came
            missing -= isinstance(came, Final)
            yield index, came
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
