"""Several copies of one engine behind the engine's interface.

A step of a small LLM takes a GPU less time than it takes a CPU core to prepare it and to hand out
its tokens, so that one engine process leaves the GPU idle. Copies on the same GPU, or on GPUs of
their own, put more cores to work. They share no KV cache: each finds the prefixes in its own.
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
)
from echolm.errors import InvalidRequestError, UnavailableError


def start(makers: Sequence[Callable[[], LLMEngine]]) -> LLMEngine:
    """Start one engine for each maker, at the same time; gives the only one, or all as one.

    If one cannot start, none is left running, and its error is raised.
    """
    if len(makers) == 1:
        return makers[0]()
    with ThreadPoolExecutor(len(makers)) as threads:
        starting = [threads.submit(make) for make in makers]
    problems = [error for one in starting if (error := one.exception()) is not None]
    if problems:
        for one in starting:
            if one.exception() is None:
                one.result().close()
        raise problems[0]
    return ReplicatedEngine([one.result() for one in starting])


class ReplicatedEngine:
    """:class:`~echolm.engines.base.LLMEngine` over copies, of which the least busy answers.

    A copy that is starting anew gets nothing; while any takes requests, so does the whole.
    """

    def __init__(self, replicas: Sequence[LLMEngine]) -> None:
        """
        Args:
            replicas: at least one; closed with this.
        """
        self._replicas = tuple(replicas)
        self._lock = threading.Lock()
        self._owners: dict[str, int] = {}
        self._in_flight = [0] * len(self._replicas)
        self._hits = [0] * len(self._replicas)
        self._former_hits = 0

    def submit(self, request: GenerationRequest, on_chunk: OnChunk) -> None:
        tried: set[int] = set()
        while True:
            k = self._claim(request.request_id, tried)
            try:
                self._replicas[k].submit(request, self._watched(request.request_id, on_chunk))
                return
            except BaseException as problem:
                self._release(request.request_id)
                tried.add(k)
                if not isinstance(problem, UnavailableError) or len(tried) == len(self._replicas):
                    raise

    def cancel(self, request_id: str) -> None:
        with self._lock:
            k = self._owners.get(request_id)
        if k is not None:
            self._replicas[k].cancel(request_id)

    def stats(self) -> EngineStats:
        each = [replica.stats() for replica in self._replicas]
        told = [one.prefix_hit_tokens for one in each]
        with self._lock:
            for k, hits in enumerate(told):
                # A copy that started anew counts from zero; what it had found stays found.
                if (hits or 0) < self._hits[k]:
                    self._former_hits += self._hits[k]
                self._hits[k] = hits or 0
            found = self._former_hits + sum(self._hits)
        return EngineStats(
            ready=any(one.ready for one in each),
            in_flight=sum(one.in_flight for one in each),
            restarts=sum(one.restarts for one in each),
            prefix_hit_tokens=None if found == 0 and None in told else found,
        )

    def close(self) -> None:
        with ThreadPoolExecutor(len(self._replicas)) as threads:
            list(threads.map(lambda replica: replica.close(), self._replicas))

    def _claim(self, request_id: str, tried: set[int]) -> int:
        """The least busy copy but those tried, with the request counted as its own."""
        with self._lock:
            if request_id in self._owners:
                raise InvalidRequestError.of(
                    "request_id", "an id that is not in flight", request_id
                )
            left = [k for k in range(len(self._replicas)) if k not in tried]
            k = min(left, key=lambda k: self._in_flight[k])
            self._owners[request_id] = k
            self._in_flight[k] += 1
            return k

    def _release(self, request_id: str) -> None:
        with self._lock:
            if (k := self._owners.pop(request_id, None)) is not None:
                self._in_flight[k] -= 1

    def _watched(self, request_id: str, on_chunk: OnChunk) -> OnChunk:
        def watched(event: GenerationChunk | Exception) -> None:
            if isinstance(event, Exception) or event.is_last:
                self._release(request_id)
            on_chunk(event)

        return watched
