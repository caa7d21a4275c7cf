from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.examples.writer import ExampleIds, ExampleWriter
from echolm.retrieval.store import Example, InMemoryStore, Query, scope_key
from echolm.routing.service import Exchange
from echolm.settings import ExamplesSettings

GOOD = Exchange("q", "a", np.ones(2, dtype=np.float32), "acme", "rules", "large_llm", "stop", 0.9)


class RecordingStore(InMemoryStore):
    """Records batches; can wait, and can refuse a response for good."""

    def __init__(self) -> None:
        super().__init__(2)
        self.batches: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def upsert(self, examples: Sequence[Example], embeddings: np.ndarray) -> None:  # type: ignore[type-arg]
        self.go.wait(10)
        self.batches.append(len(examples))
        if any(e.response == "poison" for e in examples):
            raise InvalidRequestError("response: refused")
        super().upsert(examples, embeddings)


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore()


@pytest.fixture
def open_writer(store: RecordingStore) -> Iterator[Callable[..., ExampleWriter]]:
    writers: list[ExampleWriter] = []

    def make(**settings: float) -> ExampleWriter:
        chosen = ExamplesSettings(**{"flush_interval_s": 0.05, **settings})  # type: ignore[arg-type]
        writers.append(ExampleWriter(store, chosen, retry_s=0.02))
        return writers[-1]

    yield make
    store.go.set()
    for writer in writers:
        writer.close()


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def test_an_exchange_is_stored_with_all_it_says(
    store: RecordingStore, open_writer: Callable[..., ExampleWriter]
) -> None:
    id = open_writer().put(GOOD)
    assert eventually(lambda: store.count() == 1)
    assert id is not None
    example, embedding = store.rows[id]
    assert (example.request, example.response, example.tenant) == ("q", "a", "acme")
    assert (example.source_llm, example.quality) == ("large_llm", 0.9)
    assert example.scope == scope_key("acme", "rules")
    assert example.created_at_ms == example.updated_at_ms > 1_700_000_000_000
    assert embedding.tolist() == [1, 1]
    assert store.search(np.ones((1, 2), np.float32), [Query("acme", "rules")], 1, 0)[0]


def test_exchanges_are_written_in_batches(
    store: RecordingStore, open_writer: Callable[..., ExampleWriter]
) -> None:
    store.go.clear()
    writer = open_writer(batch_size=4)
    ids = [writer.put(GOOD) for _ in range(13)]
    store.go.set()
    assert eventually(lambda: store.count() == 13)
    assert set(store.rows) == set(ids)
    assert max(store.batches) == 4
    assert len(store.batches) <= 5


def test_an_outage_of_the_store_loses_nothing(
    store: RecordingStore, open_writer: Callable[..., ExampleWriter]
) -> None:
    store.error = UnavailableError("down")
    writer = open_writer()
    for _ in range(3):
        writer.put(GOOD)
    assert eventually(lambda: writer.counts.failures >= 3)
    assert store.count() == 0
    store.error = None
    assert eventually(lambda: store.count() == 3)
    assert (writer.counts.written, writer.counts.dropped) == (3, 0)


def test_what_the_store_refuses_is_dropped_alone(
    store: RecordingStore, open_writer: Callable[..., ExampleWriter]
) -> None:
    store.go.clear()
    writer = open_writer()
    writer.put(GOOD)
    assert eventually(lambda: writer.pending == 0)
    for exchange in (GOOD, replace(GOOD, response="poison"), GOOD):
        writer.put(exchange)
    store.go.set()
    assert eventually(lambda: store.count() == 3)
    assert eventually(lambda: writer.counts.dropped == 1)
    assert writer.counts.written == 3


def test_no_batch_ends_the_thread(
    store: RecordingStore, open_writer: Callable[..., ExampleWriter]
) -> None:
    writer = open_writer()
    store.error = ValueError("a defect")
    writer.put(GOOD)
    assert eventually(lambda: writer.counts.dropped == 1)
    store.error = None
    writer.put(GOOD)
    assert eventually(lambda: store.count() == 1)


def test_a_full_queue_drops_what_is_new_and_counts_it(
    store: RecordingStore, open_writer: Callable[..., ExampleWriter]
) -> None:
    store.go.clear()
    writer = open_writer(max_pending=3, batch_size=1)
    writer.put(GOOD)
    assert eventually(lambda: writer.pending == 0)  # the thread holds it
    kept = [writer.put(GOOD) for _ in range(3)]
    assert None not in kept
    assert writer.put(GOOD) is None
    assert writer.counts.dropped == 1
    store.go.set()
    assert eventually(lambda: store.count() == 4)


def test_closing_writes_what_is_queued(store: RecordingStore) -> None:
    writer = ExampleWriter(store, ExamplesSettings(flush_interval_s=60, batch_size=8))
    for _ in range(20):
        writer.put(GOOD)
    writer.close()
    assert store.count() == 20


def test_closing_during_an_outage_ends_and_counts_the_loss(store: RecordingStore) -> None:
    store.error = UnavailableError("down")
    writer = ExampleWriter(store, ExamplesSettings(flush_interval_s=0.01), retry_s=60)
    for _ in range(5):
        writer.put(GOOD)
    started = time.monotonic()
    writer.close()
    assert time.monotonic() - started < 9
    assert writer.counts.dropped == 5


def test_every_change_is_told(store: RecordingStore) -> None:
    told: list[tuple[int, int]] = []
    writer = ExampleWriter(
        store,
        ExamplesSettings(flush_interval_s=0.01),
        on_change=lambda c: told.append((c.written, c.dropped)),
    )
    writer.put(GOOD)
    writer.close()
    assert told == [(1, 0)]


def test_ids_are_unique_ascend_in_time_and_fit_int64() -> None:
    now = [1_800_000_000_000]
    ids = ExampleIds(lambda: now[0])
    same_time = {ids.next() for _ in range(50)}
    now[0] += 1
    later = ids.next()
    assert len(same_time) == 50
    assert all(0 < i < later < 2**63 for i in same_time)
