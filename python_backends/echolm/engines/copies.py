"""Several copies of one engine behind the engine's interface.

A step of a small LLM takes a GPU less time than it takes a CPU core to prepare it and to hand out
its tokens, so that one engine process leaves the GPU idle. Copies, on the same GPU or each on
another, put more cores to work. They share no KV cache: each finds the prefixes in its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from echolm.engines.base import (
    EngineStats,
    GenerationChunk,
    GenerationRequest,
    LLMEngine,
    OnChunk,
    check_request_id,
)
from echolm.errors import UnavailableError


def start_copies(makers: Sequence[Callable[[], LLMEngine]]) -> LLMEngine:
    """Start one engine for each maker, at the same time; gives the only one, or all as one.

    If one cannot start, none is left running, and its error is raised.
    """
    if len(makers) == 1:
        return makers[0]()
    with ThreadPoolExecutor(len(makers)) as threads:
        starting = [threads.submit(make) for make in makers]
    problems = [error for future in starting if (error := future.exception()) is not None]
    started = [future.result() for future in starting if future.exception() is None]
    if not problems:
        return EngineCopies(started)
    for engine in started:
        engine.close()
    raise problems[0]


class EngineCopies:
    """:class:`~echolm.engines.base.LLMEngine` over copies, of which the least busy answers.

    A copy that is starting anew gets nothing; while any takes requests, so does the whole. All
    copies, at least one, are closed with this.
    """

    def __init__(self, copies: Sequence[LLMEngine]) -> None:
        self._copies = tuple(copies)
        self._lock = threading.Lock()
        self._owners: dict[str, int] = {}
        self._in_flight = [0] * len(self._copies)
        self._hits = [0] * len(self._copies)
        self._former_hits = 0

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        def watched(event: GenerationChunk | Exception) -> None:
            if isinstance(event, Exception) or event.is_last:
                self._release(request.request_id)
            on_chunk(event)

        tried: set[int] = set()
        while True:
            k = self._claim(request.request_id, tried)
            try:
                self._copies[k].submit(request, watched)
                return
            except BaseException as problem:
                self._release(request.request_id)
                tried.add(k)
                if not isinstance(problem, UnavailableError) or len(tried) == len(self._copies):
                    raise

    def cancel(self, request_id: str) -> None:
        with self._lock:
            k = self._owners.get(request_id)
        if k is not None:
            self._copies[k].cancel(request_id)

    def stats(self) -> EngineStats:
        each = [copy.stats() for copy in self._copies]
        reported = [stats.prefix_hit_tokens for stats in each]
        with self._lock:
            for k, hits in enumerate(reported):
                # A copy that started anew counts from zero; the hits before are kept.
                if (hits or 0) < self._hits[k]:
                    self._former_hits += self._hits[k]
                self._hits[k] = hits or 0
            total = self._former_hits + sum(self._hits)
        return EngineStats(
            ready=any(stats.ready for stats in each),
            in_flight=sum(stats.in_flight for stats in each),
            restarts=sum(stats.restarts for stats in each),
            prefix_hit_tokens=None if total == 0 and None in reported else total,
        )

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._copies)) as threads:
            list(threads.map(lambda copy: copy.close(), self._copies))

    def _claim(self, request_id: str, tried: set[int]) -> int:
        """The least busy copy except those tried; the request is counted as in flight there."""
        with self._lock:
            check_request_id(request_id, self._owners)
            untried = [k for k in range(len(self._copies)) if k not in tried]
            k = min(untried, key=self._in_flight.__getitem__)
            self._owners[request_id] = k
            self._in_flight[k] += 1
            return k

    def _release(self, request_id: str) -> None:
        with self._lock:
            if (k := self._owners.pop(request_id, None)) is not None:
                self._in_flight[k] -= 1
