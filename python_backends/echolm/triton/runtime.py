"""An event loop of our own inside a python-backend process.

``execute`` must return at once, or one slow LLM would block every request of its instance.
So it hands coroutines to this loop, returns None, and response senders answer later.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

from echolm.triton.responder import Responder

logger = logging.getLogger("echolm")

MAX_BLOCKING_CALLS = 256
"""BLS calls in flight. Each blocks one thread; asyncio's own default would allow 6 on 2 cores."""

_CANCEL_CHECK_S = 0.1
_CANCEL_CHECKS_PER_ROUND = 64  # each asks Triton over shared memory, so a round stays short


class Runtime:
    """A thread that runs an event loop, and watches whether clients have gone."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self.executor = ThreadPoolExecutor(MAX_BLOCKING_CALLS, thread_name_prefix=f"{name}-bls")
        self.loop.set_default_executor(self.executor)
        # Of its own: when all others wait in BLS calls, clients that leave must still be noticed.
        self._watcher = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-watch")
        self._watched: dict[asyncio.Task[None], Responder | None] = {}
        self._thread = threading.Thread(target=self._run, name=f"{name}-loop", daemon=True)
        self._thread.start()
        self.spawn(self._watch())

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def in_flight(self) -> int:
        """Requests whose responder is open, and the loop's own background tasks."""
        return len(self._watched)

    def spawn(self, work: Coroutine[Any, Any, None], responder: Responder | None = None) -> None:
        """Run a coroutine on the loop; it is cancelled when the responder's client goes away."""
        self.loop.call_soon_threadsafe(self._start, work, responder)

    def _start(self, work: Coroutine[Any, Any, None], responder: Responder | None) -> None:
        task = self.loop.create_task(work)
        self._watched[task] = responder
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._watched.pop(task, None)
        if not task.cancelled() and (problem := task.exception()) is not None:
            logger.error("background task failed", exc_info=problem)

    async def _watch(self) -> None:
        position = 0
        while True:
            await asyncio.sleep(_CANCEL_CHECK_S)
            watched = [(t, r) for t, r in self._watched.items() if r is not None]
            if not watched:
                continue
            position = position % len(watched)
            part = watched[position : position + _CANCEL_CHECKS_PER_ROUND]
            position += len(part)
            for task in await self.loop.run_in_executor(self._watcher, _gone, part):
                task.cancel()

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancel what runs and stop the loop."""

        async def cancel_all() -> None:
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        future = asyncio.run_coroutine_threadsafe(cancel_all(), self.loop)
        try:
            future.result(timeout_s)
        except Exception as error:  # shutdown goes on whatever a task does
            logger.warning("tasks did not stop in %.0f s: %r", timeout_s, error)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout_s)
        self.executor.shutdown(wait=False, cancel_futures=True)
        self._watcher.shutdown(wait=False, cancel_futures=True)


def _gone(watched: list[tuple[asyncio.Task[None], Responder]]) -> list[asyncio.Task[None]]:
    return [task for task, responder in watched if responder.is_cancelled()]
