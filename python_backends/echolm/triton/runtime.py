"""An event loop of our own inside a python-backend process.

``execute`` must return at once, or one slow LLM would block every request of its instance.
So it starts coroutines on this loop, returns None, and response senders answer later.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

from echolm.errors import EchoError
from echolm.triton.responder import Responder

logger = logging.getLogger("echolm")

_MAX_BLOCKING_CALLS = 256
"""BLS calls in flight. Each blocks one thread; asyncio's own default would allow 6 on 2 cores."""

_CANCEL_CHECK_S = 0.1
_CANCEL_CHECKS_PER_ROUND = 64  # each asks Triton over shared memory, so a round stays short


class Runtime:
    """A thread that runs an event loop, and another that watches whether clients have gone."""

    def __init__(self, model: str, cancel_check_s: float = _CANCEL_CHECK_S) -> None:
        self.loop = uvloop.new_event_loop()
        self._executor = ThreadPoolExecutor(_MAX_BLOCKING_CALLS, f"{model}-bls")
        self.loop.set_default_executor(self._executor)
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancel_check_s = cancel_check_s
        self._watched: dict[Responder, Callable[[], object]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # A thread apart: it notices clients that leave even when all others wait in BLS calls.
        self._threads = [
            threading.Thread(target=self.loop.run_forever, name=f"{model}-loop", daemon=True),
            threading.Thread(target=self._watch, name=f"{model}-watch", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def spawn(self, work: Coroutine[Any, Any, None], responder: Responder | None = None) -> None:
        """Run a coroutine on the loop; it is cancelled when the responder's client goes away."""
        self.loop.call_soon_threadsafe(self._start, work, responder)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call a function on the loop after so many seconds; from any thread."""
        self.loop.call_soon_threadsafe(self.loop.call_later, delay_s, call)

    def repeat(
        self, work: Callable[[], object], every_s: float, failure: str, first_s: float | None = None
    ) -> None:
        """Call ``work`` again and again, off the loop.

        Args:
            failure: what is logged with an error that it raises; the next round may work.
            first_s: pause before the first round, by default as before every other.
        """

        async def rounds() -> None:
            pause_s, known = every_s if first_s is None else first_s, ""
            while True:
                await asyncio.sleep(pause_s)
                pause_s = every_s
                try:
                    await self.loop.run_in_executor(None, work)
                except Exception as error:
                    # A defect shows where it is once, and not in each round.
                    defect = not isinstance(error, EchoError) and repr(error) != known
                    known = repr(error)
                    logger.warning("%s: %s", failure, error, exc_info=defect)

        self.spawn(rounds())

    def _start(self, work: Coroutine[Any, Any, None], responder: Responder | None) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        if responder is not None:
            self.watch(responder, lambda: self.loop.call_soon_threadsafe(task.cancel))

        def finished(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if responder is not None:
                self.unwatch(responder)
            if not task.cancelled() and (problem := task.exception()) is not None:
                logger.error("background task failed", exc_info=problem)

        task.add_done_callback(finished)

    def watch(self, responder: Responder, gone: Callable[[], object]) -> None:
        """Call ``gone``, in a thread of its own, once the responder's client has gone away."""
        with self._lock:
            self._watched[responder] = gone

    def unwatch(self, responder: Responder) -> None:
        """The request has ended."""
        with self._lock:
            self._watched.pop(responder, None)

    def _watch(self) -> None:
        position = 0
        while not self._closed.wait(self._cancel_check_s):
            with self._lock:
                watched = list(self._watched.items())
            if not watched:
                continue
            position %= len(watched)
            part = watched[position : position + _CANCEL_CHECKS_PER_ROUND]
            position += len(part)
            for responder, gone in part:
                if self._closed.is_set():
                    return
                try:
                    if responder.is_cancelled():
                        self.unwatch(responder)
                        gone()
                except Exception as error:  # the others' clients must still be watched
                    logger.error("a request could not be cancelled", exc_info=error)

    def close(self, timeout_s: float = 5.0) -> None:
        """Cancel what runs and stop the loop."""

        async def cancel_all() -> None:
            await cancel(asyncio.all_tasks() - {asyncio.current_task()})
            await self.loop.shutdown_asyncgens()

        self._closed.set()
        future = asyncio.run_coroutine_threadsafe(cancel_all(), self.loop)
        try:
            future.result(timeout_s)
        except Exception as error:  # shutdown goes on whatever a task does
            logger.warning("tasks did not stop in %.0f s: %r", timeout_s, error)
        self.loop.call_soon_threadsafe(self.loop.stop)
        for thread in self._threads:
            thread.join(timeout_s)
        self._executor.shutdown(wait=False, cancel_futures=True)


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have stopped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
