"""Joins single calls into batches, without making any call wait for others to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from echolm.errors import InvalidRequestError

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Calls ``run`` with all items that have gathered whenever a call may start.

    An idle batcher starts at once, so a lone item waits for nothing; under load the items that
    come while calls are running make up the next batch. Batches thus grow with the load, and
    each item costs less. A batcher belongs to one event loop.

    Args:
        run: answers a batch, in order.
        max_batch: most items in one call.
        max_running: most calls at a time.
    """

    def __init__(
        self, run: Callable[[Sequence[T]], Awaitable[Sequence[R]]], max_batch: int, max_running: int
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_running = max_running
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def __call__(self, item: T) -> R:
        """The answer to one item; raises what ``run`` raises for its batch.

        If that is an InvalidRequestError, it is not known which item of the batch is wrong, so
        ``run`` is then called for each of them alone.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((item, future))
        if not self._scheduled:
            # Items that come in the same turn of the loop go together.
            self._scheduled = True
            loop.call_soon(self._start)
        return await future

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._running) < self._max_running:
            batch: list[tuple[T, asyncio.Future[R]]] = []
            while self._waiting and len(batch) < self._max_batch:
                item, future = self._waiting.popleft()
                if not future.done():  # its caller may have gone
                    batch.append((item, future))
            if batch:
                task = asyncio.create_task(self._answer(batch))
                self._running.add(task)
                task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _answer(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._run([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:
            if len(batch) > 1 and isinstance(error, InvalidRequestError):
                await asyncio.gather(*(self._answer([item]) for item in batch))
                return
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
