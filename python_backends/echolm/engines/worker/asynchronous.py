"""The worker's event loop for a library that batches in flight and hands out text by asyncio.

A thread reads requests from the socket for the loop, and another writes one message for each turn
of the loop in which there is something new.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol

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

Outputs = AsyncIterator[tuple[GenerationChunk, "int | None"]]
"""What a library generates for a request, each time since the last, and how many tokens of the
prompt were in the prefix cache; None if the library does not say, or not yet."""


class AsyncBackend(Protocol):
    """A library with a loaded model. Its methods are called from one event loop.

    Attributes:
        name: what messages call the engine.
        context_length: most tokens of prompt and answer together.
        tokenizer: its ``encode(prompt, add_special_tokens=...)`` gives token ids. It runs in
            another thread.
    """

    name: str
    context_length: int
    tokenizer: Any

    def generate(self, request: GenerationRequest, prompt: list[int]) -> Outputs:
        """Generate one answer; unless the request is streaming, one output at the end will do.

        An exception fails this request only, while :meth:`failure` gives None.
        """

    async def abort(self, request_id: str) -> None:
        """Stop a request soon; unknown ids are ignored."""

    def failure(self) -> str | None:
        """Why the library can answer nothing any more; None while it is well."""

    async def close(self) -> None:
        """Stop the library and its processes."""


@dataclass
class _Active:
    """A request in flight."""

    request: GenerationRequest
    task: asyncio.Task[None] = field(init=False)
    cancelled: bool = False
    prompt_tokens: int = 0
    num_tokens: int = 0
    cached_tokens: int = 0
    pieces: list[str] = field(default_factory=list)


class AsyncWorker:
    """Runs the requests that come over a connection on an :class:`AsyncBackend`."""

    def __init__(self, backend: AsyncBackend, connection: Connection) -> None:
        self._backend = backend
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._active: dict[str, _Active] = {}
        self._aborts: set[asyncio.Task[None]] = set()
        self._events: list[Event] = []
        self._prefix_hits: int | None = None
        self._outbox: queue.SimpleQueue[Events | None] = queue.SimpleQueue()
        # One thread: tokenizers must not be changed by two at a time.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def run(self) -> str | None:
        """Serve until the other side has closed; gives why the backend has failed, if it has."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        writer = threading.Thread(target=self._write, name="writer", daemon=True)
        writer.start()
        reason: str | None = None
        while reason is None and not self._ended.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _HEALTH_S)
            reason = self._backend.failure()
        self._flush()
        self._outbox.put(None)
        writer.join(_WRITE_S)
        self._encoder.shutdown(wait=False, cancel_futures=True)
        return None if self._ended.is_set() else reason

    def _read(self) -> None:
        """Runs in a thread: passes what comes to the loop."""
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            with contextlib.suppress(EOFError, OSError):
                while True:
                    self._loop.call_soon_threadsafe(self._take, self._connection.recv())
            self._loop.call_soon_threadsafe(self._ended.set)

    def _write(self) -> None:
        """Runs in a thread, since a slow reader must not stop the loop."""
        with contextlib.suppress(OSError):  # The reader's thread sees it too.
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)

    def _take(self, batch: list[GenerationRequest | str]) -> None:
        for item in batch:
            if isinstance(item, GenerationRequest):
                active = self._active[item.request_id] = _Active(item)
                active.task = self._loop.create_task(self._serve(active))
            elif (cancelled := self._active.get(item)) is not None:
                cancelled.cancelled = True
                if cancelled.prompt_tokens:  # else it is not with the library yet
                    abort = self._loop.create_task(self._abort(cancelled))
                    self._aborts.add(abort)
                    abort.add_done_callback(self._aborts.discard)

    async def _abort(self, active: _Active) -> None:
        try:
            await self._backend.abort(active.request.request_id)
            await asyncio.wait([active.task], timeout=_ABORT_S)
        except Exception:
            logger.exception("engine %s: a request could not be aborted", self._backend.name)
        active.task.cancel()

    async def _serve(self, active: _Active) -> None:
        request, name = active.request, self._backend.name
        try:
            prompt = await self._encode(request)
            active.prompt_tokens = len(prompt)
            last = active.cancelled
            if not last:
                async for chunk, cached in self._backend.generate(request, prompt):
                    self._report(active, chunk, cached)
                    last = chunk.is_last
            if not last:
                raise UnavailableError(f"engine {name}: ended without an answer")
            if active.cancelled and request.request_id in self._active:
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            tokens = active.prompt_tokens, active.num_tokens
            self._report(active, GenerationChunk("", FINISH_CANCELLED, *tokens))
        except EchoError as problem:
            self._end(active, problem)
        except Exception as problem:
            logger.exception("engine %s: a request failed", name)
            self._end(active, UnavailableError(f"engine {name}: {type(problem).__name__}"))

    async def _encode(self, request: GenerationRequest) -> list[int]:
        limit, max_tokens = self._backend.context_length, request.sampling.max_tokens
        check_context_length(limit, max_tokens)  # Don't tokenize for nothing.
        special = request.add_special_tokens
        encode = partial(self._backend.tokenizer.encode, add_special_tokens=special)
        ids = list(await self._loop.run_in_executor(self._encoder, encode, request.prompt))
        check_context_length(limit, max_tokens, len(ids))
        return ids

    def _report(self, active: _Active, chunk: GenerationChunk, cached: int | None = None) -> None:
        active.num_tokens = chunk.num_output_tokens
        if cached is not None:
            self._prefix_hits = (self._prefix_hits or 0) + cached - active.cached_tokens
            active.cached_tokens = cached
        if not active.request.streaming:
            active.pieces.append(chunk.text)
            chunk = replace(chunk, text="".join(active.pieces) if chunk.is_last else "")
        if chunk.is_last:
            self._end(active, chunk)
        elif chunk.text:
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
    """Start the backend and serve; as :data:`~echolm.engines.worker.child.Run` describes it."""

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
