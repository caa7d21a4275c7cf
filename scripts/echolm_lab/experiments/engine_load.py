"""Load on an engine itself, without Triton: throughput, time to the first token, between tokens."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from echolm.engines import LLMEngine
from echolm.engines.base import GenerationChunk, GenerationRequest
from echolm.errors import UnavailableError
from echolm.primitives import Sampling

_MOST_FAILURES = 100


@dataclass(frozen=True)
class EngineFigures:
    """What an engine did under a load.

    Attributes:
        requests: answered.
        prompt_tokens, output_tokens: mean of a request.
        ttft_p50_ms, ttft_p99_ms: time to the first token, or the whole answer if not streamed.
        tbt_mean_ms, tbt_p99_ms: time between tokens: of each request the mean, of which the mean
            and the 99th percentile; 0 if not streamed.
        prefix_hit_rate: share of the prompts' tokens found in the prefix cache; None where the
            engine does not count them.
    """

    requests: int
    failed: int
    prompt_tokens: float
    output_tokens: float
    requests_per_s: float
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    tbt_mean_ms: float
    tbt_p99_ms: float
    latency_p50_ms: float
    latency_p99_ms: float
    prefix_hit_rate: float | None


@dataclass(frozen=True)
class _Answer:
    """Seconds from the request to its first and to its last piece."""

    first_s: float
    last_s: float
    end: GenerationChunk


class _Load:
    """Keeps ``concurrency`` requests in flight until the time or the prompts end."""

    def __init__(
        self,
        engine: LLMEngine,
        prompts: Iterable[str],
        sampling: Sampling,
        streaming: bool,
        seconds: float,
    ) -> None:
        self._engine, self._sampling, self._streaming = engine, sampling, streaming
        self._prompts = iter(prompts)
        self._seconds = seconds
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._ended = threading.Event()
        self.done: list[_Answer] = []
        self.failed = 0

    def run(self, concurrency: int) -> float:
        """Give the seconds from the first request to the last answer."""
        started = time.perf_counter()
        self._deadline = started + self._seconds
        self._in_flight = concurrency
        for _ in range(concurrency):
            self._submit()
        self._ended.wait()
        return time.perf_counter() - started

    def _submit(self) -> None:
        with self._lock:
            prompt = next(self._prompts, None)
            number = next(self._numbers)
            if prompt is None:
                self._in_flight -= 1
                if self._in_flight == 0:
                    self._ended.set()
                return
        request = GenerationRequest(
            request_id=f"load-{number}",
            prompt=prompt,
            sampling=self._sampling,
            streaming=self._streaming,
        )
        started = time.perf_counter()
        first: list[float] = []

        def on_chunk(chunk: GenerationChunk | Exception) -> None:
            now = time.perf_counter() - started
            first.append(now)
            if isinstance(chunk, Exception):
                self.failed += 1
                if self.failed == 1:
                    print(f"a request failed: {chunk}", file=sys.stderr)
            elif not chunk.is_last:
                return
            else:
                self.done.append(_Answer(first[0], now, chunk))
            if time.perf_counter() >= self._deadline or self.failed >= _MOST_FAILURES:
                self._prompts = iter(())
            self._submit()

        self._engine.submit(request, on_chunk)


def answer_all(
    engine: LLMEngine, prompts: Sequence[str], sampling: Sampling, concurrency: int
) -> list[str]:
    """An engine's answers to all prompts, in order.

    Args:
        concurrency: prompts in flight.

    Raises:
        EchoError: one prompt could not be answered.
    """
    answers: list[str | Exception] = [""] * len(prompts)
    free = threading.Semaphore(concurrency)
    for number, prompt in enumerate(prompts):
        free.acquire()

        def on_chunk(chunk: GenerationChunk | Exception, number: int = number) -> None:
            answers[number] = chunk if isinstance(chunk, Exception) else chunk.text
            free.release()

        request = GenerationRequest(request_id=f"ask-{number}", prompt=prompt, sampling=sampling)
        engine.submit(request, on_chunk)
    for _ in range(concurrency):
        free.acquire()
    texts: list[str] = []
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
        texts.append(answer)
    return texts


def measure_engine(
    engine: LLMEngine,
    prompts: Iterable[str],
    sampling: Sampling,
    concurrency: int,
    seconds: float,
    streaming: bool = True,
) -> EngineFigures:
    """Send prompts in order with ``concurrency`` in flight, until there are none or time is up.

    Raises:
        UnavailableError: no request was answered.
    """
    load = _Load(engine, prompts, sampling, streaming, seconds)
    hits = engine.stats().prefix_hit_tokens
    took_s = load.run(concurrency)
    after = engine.stats().prefix_hit_tokens
    if not load.done:
        raise UnavailableError("no request was answered")
    first = np.array([answer.first_s for answer in load.done])
    last = np.array([answer.last_s for answer in load.done])
    tokens = np.array([answer.end.num_output_tokens for answer in load.done])
    prompt = np.array([answer.end.num_input_tokens for answer in load.done])
    between = 1e3 * (last - first) / np.maximum(tokens - 1, 1)
    return EngineFigures(
        requests=len(load.done),
        failed=load.failed,
        prompt_tokens=float(prompt.mean()),
        output_tokens=float(tokens.mean()),
        requests_per_s=len(load.done) / took_s,
        tokens_per_s=float(tokens.sum()) / took_s,
        ttft_p50_ms=1e3 * float(np.quantile(first, 0.5)),
        ttft_p99_ms=1e3 * float(np.quantile(first, 0.99)),
        tbt_mean_ms=float(between.mean()),
        tbt_p99_ms=float(np.quantile(between, 0.99)),
        latency_p50_ms=1e3 * float(np.quantile(last, 0.5)),
        latency_p99_ms=1e3 * float(np.quantile(last, 0.99)),
        prefix_hit_rate=None
        if hits is None or after is None
        else (after - hits) / max(1, int(prompt.sum())),
    )
