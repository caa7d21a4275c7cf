"""The worker's event loop for a library that batches in flight and hands out text by asyncio.

::

    WorkerEngine (Triton's model)            worker process
      submit, cancel ── socket ─▶ thread ─▶ event loop: encode, generate, abort ─▶ library
      on_chunk  ◀────── socket ◀─ thread ◀─ one message per turn of the loop
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Protocol

from echolm.engines.base import (
    FINISH_CANCELLED,
    GenerationChunk,
    GenerationRequest,
    check_context_length,
)
from echolm.engines.worker.messages import Event, Events
from echolm.errors import EchoError, UnavailableError

logger = logging.getLogger("echolm")

_HEALTH_S = 0.5
_ABORT_S = 2.0
"""An aborted request that has not ended by then is abandoned."""
_WRITE_S = 5.0


@dataclass(frozen=True)
class Output:
    """What a library has generated for a request since its last output.

    Attributes:
        text: new since the last output.
        num_tokens: tokens generated so far.
        finish_reason: one of ``FINISH_*``, or None if more comes.
        stop_reason: the stop word that ended the answer.
        cumulative_logprob: natural log of the probability of the tokens so far, if the request
            asks for it.
        cached_tokens: tokens of the prompt that were in the prefix cache; None if the library
            does not say, or not yet.
    """

    text: str
    num_tokens: int
    finish_reason: str | None = None
    stop_reason: str | None = None
    cumulative_logprob: float | None = None
    cached_tokens: int | None = None


class AsyncBackend(Protocol):
    """A library with a loaded model. All but :meth:`encode` is called from one event loop.

    Attributes:
        name: what messages call the engine.
        context_length: most tokens of prompt and answer together.
    """

    name: str
    context_length: int

    def encode(self, prompt: str) -> Sequence[int]:
        """Token ids of a prompt, special tokens included. Runs in another thread."""

    def generate(self, request: GenerationRequest, prompt: list[int]) -> AsyncIterator[Output]:
        """Generate one answer; unless the request is streaming, one output at the end will do.

        Raises:
            EchoError: fails this request only, as every other exception does while
                :meth:`failure` gives None.
        """

    async def abort(self, request_id: str) -> None:
        """Stop a request soon; unknown ids are ignored."""

    def failure(self) -> str | None:
        """Why the library can answer nothing any more; None while it is well."""

    async def close(self) -> None:
        """Stop the library and its processes."""


class _Active:
    """A request in flight."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.task: asyncio.Task[None] | None = None
        self.cancelled = False
        self.prompt_tokens = 0
        self.num_tokens = 0
        self.cached_tokens = 0
        self.pieces: list[str] = []


class AsyncWorker:
    """Runs the requests that come over a connection on an :class:`AsyncBackend`."""

    def __init__(self, backend: AsyncBackend, connection: Connection) -> None:
        self._backend = backend
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._active: dict[str, _Active] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        self._events: list[Event] = []
        self._prefix_hits: int | None = None
        self._outbox: queue.SimpleQueue[Events | None] = queue.SimpleQueue()
        # One thread: tokenizers must not be changed by two at a time.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def run(self) -> str | None:
        """Serve until the other side has closed.

        Returns:
            Why the backend has failed; None if it has not.
        """
        reader = threading.Thread(target=self._read, name="reader", daemon=True)
        writer = threading.Thread(target=self._write, name="writer", daemon=True)
        for thread in (reader, writer):
            thread.start()
        reason: str | None = None
        while reason is None and not self._ended.done():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._ended), _HEALTH_S)
            reason = self._backend.failure()
        self._flush()
        self._outbox.put(None)
        writer.join(_WRITE_S)
        self._encoder.shutdown(wait=False, cancel_futures=True)
        return None if self._ended.done() else reason

    def _read(self) -> None:
        """Runs in a thread: passes what comes to the loop."""
        while True:
            try:
                batch = self._connection.recv()
            except (EOFError, OSError):
                break
            self._loop.call_soon_threadsafe(self._take, batch)
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    def _write(self) -> None:
        """Runs in a thread, since a slow reader must not stop the loop."""
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:  # The reader's thread sees it too.
                return

    def _take(self, batch: list[GenerationRequest | str]) -> None:
        for item in batch:
            if isinstance(item, GenerationRequest):
                active = self._active[item.request_id] = _Active(item)
                active.task = self._loop.create_task(self._serve(active))
            elif (cancelled := self._active.get(item)) is not None:
                self._cancel(cancelled)

    def _cancel(self, active: _Active) -> None:
        active.cancelled = True
        if active.prompt_tokens:  # else it is not with the library yet
            abort = self._loop.create_task(self._abort(active))
            self._aborts.add(abort)
            abort.add_done_callback(self._aborts.discard)

    async def _abort(self, active: _Active) -> None:
        try:
            await self._backend.abort(active.request.request_id)
            await asyncio.wait([active.task] if active.task else [], timeout=_ABORT_S)
        except Exception:
            logger.exception("engine %s: a request could not be aborted", self._backend.name)
        if active.task is not None:
            active.task.cancel()

    async def _serve(self, active: _Active) -> None:
        request = active.request
        try:
            prompt = await self._encode(request)
            active.prompt_tokens = len(prompt)
            last = active.cancelled
            if not last:
                async for output in self._backend.generate(request, prompt):
                    self._report(active, output)
                    last = output.finish_reason is not None
            if not last:
                raise UnavailableError(f"engine {self._backend.name}: ended without an answer")
            if active.cancelled and request.request_id in self._active:
                self._report(active, Output("", active.num_tokens, FINISH_CANCELLED))
        except asyncio.CancelledError:
            self._report(active, Output("", active.num_tokens, FINISH_CANCELLED))
        except EchoError as problem:
            self._end(active, problem)
        except Exception as problem:
            logger.exception("engine %s: a request failed", self._backend.name)
            name = f"engine {self._backend.name}"
            self._end(active, UnavailableError(f"{name}: {type(problem).__name__}"))

    async def _encode(self, request: GenerationRequest) -> list[int]:
        limit, max_tokens = self._backend.context_length, request.sampling.max_tokens
        check_context_length(limit, max_tokens)  # Don't tokenize for nothing.
        ids = await self._loop.run_in_executor(self._encoder, self._backend.encode, request.prompt)
        check_context_length(limit, max_tokens, len(ids))
        return list(ids)

    def _report(self, active: _Active, output: Output) -> None:
        active.num_tokens = output.num_tokens
        if output.cached_tokens is not None:
            new = output.cached_tokens - active.cached_tokens
            active.cached_tokens = output.cached_tokens
            self._prefix_hits = (self._prefix_hits or 0) + new
        text = output.text
        if not active.request.streaming:
            active.pieces.append(text)
            text = "".join(active.pieces)
        if output.finish_reason is None and not (active.request.streaming and text):
            return
        chunk = GenerationChunk(
            text=text,
            finish_reason=output.finish_reason,
            num_input_tokens=active.prompt_tokens,
            num_output_tokens=output.num_tokens,
            cumulative_logprob=output.cumulative_logprob,
            stop_reason=output.stop_reason,
        )
        if chunk.is_last:
            self._end(active, chunk)
        else:
            self._emit(active, chunk)

    def _end(self, active: _Active, event: GenerationChunk | Exception) -> None:
        if self._active.pop(active.request.request_id, None) is not None:
            self._emit(active, event)

    def _emit(self, active: _Active, event: GenerationChunk | Exception) -> None:
        if not self._events:  # What comes in this turn of the loop goes as one message.
            self._loop.call_soon(self._flush)
        self._events.append((active.request.request_id, event))

    def _flush(self) -> None:
        events, self._events = self._events, []
        self._outbox.put(Events(events, self._prefix_hits))


def run(
    make: Callable[[], Awaitable[AsyncBackend]], connection: Connection, ready: Callable[[], None]
) -> str | None:
    """Start the backend and serve until the other side has closed.

    Args:
        make: gives the loaded backend, or raises what is wrong with it.
        ready: called when the model is loaded.

    Returns:
        Why the backend has failed; None if it has not.
    """

    async def main() -> str | None:
        backend = await make()
        try:
            ready()
            return await AsyncWorker(backend, connection).run()
        finally:
            await backend.close()

    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    reason: str | None = uvloop.run(main())
    return reason
