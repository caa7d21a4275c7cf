"""Writes admitted examples to the store in batches, off the request's path."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echolm.errors import UnavailableError
from echolm.retrieval.store import Example, ExampleStore, scope_key
from echolm.routing.service import Exchange
from echolm.settings import ExamplesSettings

logger = logging.getLogger("echolm")

_RETRY_S = 2.0


class ExampleIds:
    """Unique 63-bit ids, ascending in time: 41 bits of milliseconds, 22 random bits.

    Replicas need no coordination, and the order of ids is the order of admission.
    """

    _EPOCH_MS = 1_735_689_600_000  # 2025-01-01

    def __init__(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now_ms = now_ms

    def next(self) -> int:
        """A new id."""
        return ((self._now_ms() - self._EPOCH_MS) << 22) | secrets.randbits(22)


@dataclass
class WriterCounts:
    """What became of the exchanges handed to a writer."""

    written: int = 0
    dropped: int = 0
    failures: int = 0


class ExampleWriter:
    """One thread that upserts what is put into a bounded queue.

    While the store does not answer, exchanges wait in the queue; when it is full, new ones
    are dropped and counted. What the store refuses for good is dropped, too, and does not
    hold up the rest of its batch.

    Args:
        on_change: called after every write, drop or failure, e.g. to update metrics.
    """

    def __init__(
        self,
        store: ExampleStore,
        settings: ExamplesSettings,
        ids: ExampleIds | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        on_change: Callable[[WriterCounts], None] = lambda counts: None,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._store = store
        self._settings = settings
        self._ids = ids or ExampleIds()
        self._now_ms = now_ms
        self._on_change = on_change
        self._retry_s = retry_s
        self._queue: queue.Queue[tuple[Example, NDArray[np.float32]]] = queue.Queue(
            settings.max_pending
        )
        self._stopping = threading.Event()
        self.counts = WriterCounts()
        self._thread = threading.Thread(target=self._run, name="example-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Examples that wait to be written."""
        return self._queue.qsize()

    def put(self, exchange: Exchange) -> int | None:
        """Queue an exchange; returns its new id, or None if the queue is full."""
        now = self._now_ms()
        example = Example(
            id=self._ids.next(),
            request=exchange.request,
            response=exchange.response,
            tenant=exchange.tenant,
            scope=scope_key(exchange.tenant, exchange.system_prompt),
            source_llm=exchange.llm,
            quality=exchange.quality,
            created_at_ms=now,
            updated_at_ms=now,
        )
        try:
            self._queue.put_nowait((example, exchange.embedding))
        except queue.Full:
            self.counts.dropped += 1
            self._on_change(self.counts)
            return None
        return example.id

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is queued and stop; what the store does not take in time is lost."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while batch := self._next_batch():
            self._write(batch)

    def _next_batch(self) -> list[tuple[Example, NDArray[np.float32]]]:
        """Wait for the first, then gather more for a while; empty when stopping and drained."""
        batch: list[tuple[Example, NDArray[np.float32]]] = []
        deadline = float("inf")
        while len(batch) < self._settings.batch_size:
            if self._stopping.is_set():
                wait = 0.0
            else:
                wait = min(0.2, max(0.0, deadline - time.monotonic()))
            try:
                batch.append(self._queue.get(timeout=wait) if wait else self._queue.get_nowait())
                deadline = min(deadline, time.monotonic() + self._settings.flush_interval_s)
            except queue.Empty:
                if self._stopping.is_set() or (batch and time.monotonic() >= deadline):
                    break
        return batch

    def _write(self, batch: list[tuple[Example, NDArray[np.float32]]]) -> None:
        examples = [example for example, _ in batch]
        while True:
            try:
                embeddings = np.stack([embedding for _, embedding in batch])
                self._store.upsert(examples, embeddings)
            except UnavailableError as error:
                self.counts.failures += 1
                self._on_change(self.counts)
                logger.warning("examples not written, will retry: %s", error)
                # While stopping there is one last try, not an endless wait.
                if self._stopping.is_set() or self._stopping.wait(self._retry_s):
                    self.counts.dropped += len(batch)
                    self._on_change(self.counts)
                    return
            except Exception as error:  # the thread must outlive any batch
                self.counts.failures += 1
                if len(batch) > 1:
                    for one in batch:
                        self._write([one])
                    return
                logger.error("example %d dropped: %s", examples[0].id, error)
                self.counts.dropped += 1
                self._on_change(self.counts)
                return
            else:
                self.counts.written += len(batch)
                self._on_change(self.counts)
                return
