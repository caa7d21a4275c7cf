"""A client that goes away ends what is done for it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive


class Connected:
    """Cancels the task that runs the ``with`` block when the client goes away.

    The block then raises ClientDisconnect. The body must have been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watch = asyncio.ensure_future(self._cancel_when_gone())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watch.cancel()
        if self._gone and kind is asyncio.CancelledError:
            # From Python 3.11 on a task counts how often it was cancelled.
            uncancel: Any = getattr(self._task, "uncancel", None)
            if uncancel is not None:
                uncancel()
            raise ClientDisconnect from error

    async def _cancel_when_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()
