"""An engine without a model that answers with a fixed text: for tests and to measure the path."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echolm.engines.base import (
    FINISH_CANCELLED,
    FINISH_LENGTH,
    FINISH_STOP,
    EngineStats,
    GenerationChunk,
    GenerationRequest,
    OnChunk,
    check_request_id,
)
from echolm.engines.options import read_options
from echolm.engines.text import StopWords
from echolm.errors import UnavailableError

logger = logging.getLogger("echolm")


@dataclass(frozen=True)
class DummyOptions:
    """How the engine answers. A word counts as a token.

    Attributes:
        text: the answer.
        delay_s: time to each answer; in a stream, to each word.
        fail: a message; every request fails with it.
        fail_if_contains: requests whose prompt contains this fail.
        echo_prompt: answer with the prompt instead of ``text``.
        if_contains, then_text: answer with another text if the prompt contains this.
    """

    text: str = "ok"
    delay_s: float = 0.0
    fail: str = ""
    fail_if_contains: str = ""
    echo_prompt: bool = False
    if_contains: str = ""
    then_text: str = ""


@dataclass
class _Active:
    """A request in flight."""

    request: GenerationRequest
    on_chunk: OnChunk
    pieces: list[str]
    finish_reason: str
    stop_reason: str | None
    sent: int = 0


class DummyEngine:
    """Answers from the caller's thread if there is no delay, else from one timer thread."""

    def __init__(self, options: DummyOptions | None = None) -> None:
        self._options = options or DummyOptions()
        self._active: dict[str, _Active] = {}
        self._due: list[tuple[float, int, str]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None
        if self._options.delay_s > 0:
            self._thread = threading.Thread(target=self._run, name="dummy-engine", daemon=True)
            self._thread.start()

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        active = self._prepare(request, on_chunk)
        with self._changed:
            if self._closed:
                raise UnavailableError("engine dummy: it is closed")
            check_request_id(request.request_id, self._active)
            self._active[request.request_id] = active
            if self._thread is not None:
                self._schedule(request.request_id)
                return
        while not self._advance(request.request_id):
            pass

    def cancel(self, request_id: str) -> None:
        with self._changed:
            active = self._active.pop(request_id, None)
        if active is not None:
            active.on_chunk(self._chunk(active, "", FINISH_CANCELLED))

    def stats(self) -> EngineStats:
        with self._changed:
            return EngineStats(ready=not self._closed, in_flight=len(self._active))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            unanswered, self._active = list(self._active.values()), {}
            self._changed.notify()
        for active in unanswered:
            active.on_chunk(UnavailableError("engine dummy: it was closed"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _prepare(self, request: GenerationRequest, on_chunk: OnChunk) -> _Active:
        options = self._options
        text = request.prompt if options.echo_prompt else options.text
        if options.if_contains and options.if_contains in request.prompt:
            text = options.then_text
        stop = StopWords(request.sampling.stop)
        first, *others = (stop.push(text) + stop.flush()).split(" ")
        pieces = [first, *(f" {word}" for word in others)]
        limit = request.sampling.max_tokens
        if len(pieces) > limit:
            return _Active(request, on_chunk, pieces[:limit], FINISH_LENGTH, None)
        return _Active(request, on_chunk, pieces, FINISH_STOP, stop.matched)

    def _schedule(self, request_id: str) -> None:
        due = time.monotonic() + self._options.delay_s
        heapq.heappush(self._due, (due, next(self._order), request_id))
        self._changed.notify()

    def _advance(self, request_id: str) -> bool:
        """Give the next chunk; True if it was the last."""
        options = self._options
        with self._changed:
            active = self._active.get(request_id)
            if active is None:
                return True
            needle = options.fail_if_contains
            failed = bool(options.fail or (needle and needle in active.request.prompt))
            step = 1 if active.request.streaming else len(active.pieces)
            text = "".join(active.pieces[active.sent : active.sent + step])
            active.sent += step
            last = failed or active.sent >= len(active.pieces)
            if last:
                del self._active[request_id]
        if failed:
            active.on_chunk(UnavailableError(options.fail or "engine dummy: told to fail"))
        else:
            active.on_chunk(self._chunk(active, text, active.finish_reason if last else None))
        return last

    @staticmethod
    def _chunk(active: _Active, text: str, finish_reason: str | None) -> GenerationChunk:
        return GenerationChunk(
            text=text,
            finish_reason=finish_reason,
            num_input_tokens=len(active.request.prompt.split()),
            num_output_tokens=min(active.sent, len(active.pieces)),
            cumulative_logprob=0.0 if active.request.sampling.logprobs else None,
            stop_reason=active.stop_reason if finish_reason == FINISH_STOP else None,
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (
                    not self._due or (wait := self._due[0][0] - time.monotonic()) > 0
                ):
                    self._changed.wait(wait if self._due else None)
                if self._closed:
                    return
                _, _, request_id = heapq.heappop(self._due)
            try:
                if not self._advance(request_id):
                    with self._changed:
                        self._schedule(request_id)
            except Exception:
                logger.exception("engine dummy: a callback failed")


def check(model_dir: Path, options: Mapping[str, Any]) -> DummyOptions:
    """See :func:`echolm.engines.check_engine`."""
    return read_options(DummyOptions, options, "dummy")


def create(model_dir: Path, options: Mapping[str, Any]) -> DummyEngine:
    """The engine with its options; it has no model, so ``model_dir`` need not exist."""
    return DummyEngine(check(model_dir, options))
