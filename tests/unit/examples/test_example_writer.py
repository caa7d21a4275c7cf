from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.examples.writer import ExampleIds, ExampleWriter
from echolm.learning.event_log import START
from echolm.primitives import Interaction
from echolm.settings import ExamplesSettings
from echolm.store.base import NEVER, Example, Query, scope_key
from echolm.testing.event_log import MemoryEventLog
from echolm.testing.store import InMemoryStore

GOOD = Interaction(
    "q", "a", np.ones(2, dtype=np.float32), "acme", "rules", "large_llm", "stop", 0.9
)


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
def log() -> MemoryEventLog:
    return MemoryEventLog()


OpenWriter = Callable[..., ExampleWriter]


@pytest.fixture
def open_writer(store: RecordingStore, log: MemoryEventLog, tmp_path: Path) -> Iterator[OpenWriter]:
    opened: list[tuple[ExampleWriter, WriteAheadLog]] = []

    def make(retry_s: float = 0.02, **settings: float) -> ExampleWriter:
        values = {"flush_interval_s": 0.05, "deduplicate": False, **settings}
        chosen = ExamplesSettings(**values)  # type: ignore[arg-type]
        write_ahead_log = WriteAheadLog(tmp_path / "write_ahead_log.sqlite", chosen.max_pending)
        writer = ExampleWriter(store, write_ahead_log, log, chosen, retry_s=retry_s)
        opened.append((writer, write_ahead_log))
        return writer

    yield make
    store.go.set()
    for writer, write_ahead_log in opened:
        writer.close()
        write_ahead_log.close()


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def test_an_interaction_is_stored_with_all_it_holds(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    [id] = open_writer().put([GOOD])
    assert eventually(lambda: store.count() == 1)
    assert id is not None
    example, embedding = store.rows[id]
    assert (example.request, example.response, example.tenant) == ("q", "a", "acme")
    assert (example.source_llm, example.quality) == ("large_llm", 0.9)
    assert example.scope == scope_key("acme", "rules")
    assert example.created_at_ms == example.updated_at_ms > 1_700_000_000_000
    assert example.expires_at_ms == NEVER
    assert embedding.tolist() == [1, 1]
    assert store.search(np.ones((1, 2), np.float32), [Query.of("acme", "rules")], 1, 0)[0]


def test_the_keys_of_an_answer_that_is_given_again_are_gathered(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    writer = open_writer(deduplicate=True)
    [id] = writer.put([replace(GOOD, answer_key="k0")])
    assert eventually(lambda: writer.pending == 0)
    for n in range(1, 10):
        writer.put([replace(GOOD, answer_key=f"k{n}")])
        assert eventually(lambda: writer.pending == 0)
    [(example, embedding)] = store.rows.values()
    assert (example.id, example.response) == (id, "a")
    assert example.answer_keys == "k2 k3 k4 k5 k6 k7 k8 k9", "the oldest go first"
    assert embedding.tolist() == [1, 1]
    assert writer.counts.repeated == 9


def test_a_store_without_a_place_for_keys_gets_none(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    store.keeps_answer_keys = False
    writer = open_writer(deduplicate=True)
    for response in ("a", "a", "other"):
        writer.put([replace(GOOD, response=response, answer_key="k")])
        assert eventually(lambda: writer.pending == 0)
    [(example, _)] = store.rows.values()
    assert (example.response, example.answer_keys) == ("a", "")


def test_a_time_to_live_is_written_with_the_example(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    [id] = open_writer(ttl_s=1.5).put([GOOD])
    assert eventually(lambda: store.count() == 1)
    example, _ = store.rows[id or 0]
    assert example.expires_at_ms - example.created_at_ms == 1_500


def test_interactions_are_written_in_batches(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    store.go.clear()
    writer = open_writer(batch_size=4)
    ids = [id for _ in range(13) for id in writer.put([GOOD])]
    store.go.set()
    assert eventually(lambda: store.count() == 13)
    assert set(store.rows) == set(ids)
    assert max(store.batches) == 4
    assert len(store.batches) <= 5


def test_an_outage_of_the_store_loses_nothing(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    store.error = UnavailableError("down")
    writer = open_writer()
    writer.put([GOOD] * 3)
    assert eventually(lambda: writer.counts.failures >= 3)
    assert (store.count(), writer.pending) == (0, 3)
    store.error = None
    assert eventually(lambda: writer.pending == 0)
    assert store.count() == 3
    assert (writer.counts.written, writer.counts.dropped) == (3, 0)


def test_an_outage_of_the_log_loses_nothing(
    store: RecordingStore, log: MemoryEventLog, open_writer: OpenWriter
) -> None:
    log.available = False
    writer = open_writer()
    [id] = writer.put([GOOD])
    assert eventually(lambda: writer.counts.failures >= 2)
    log.available = True
    assert eventually(lambda: writer.pending == 0)
    assert list(store.rows) == [id]
    assert [e.body["stored"][0]["id"] for e in log.read(START, 10)] == [id]


def test_what_the_store_refuses_is_dropped_alone(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    writer = open_writer()
    writer.put([GOOD, GOOD, replace(GOOD, response="poison"), GOOD])
    assert eventually(lambda: writer.pending == 0)
    assert store.count() == 3
    assert (writer.counts.written, writer.counts.dropped) == (3, 1)


def test_no_batch_ends_the_thread(store: RecordingStore, open_writer: OpenWriter) -> None:
    writer = open_writer()
    store.error = ValueError("a defect")
    writer.put([GOOD])
    assert eventually(lambda: writer.counts.dropped == 1)
    store.error = None
    writer.put([GOOD])
    assert eventually(lambda: store.count() == 1)


def test_a_full_log_drops_what_is_new_and_counts_it(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    store.go.clear()
    writer = open_writer(max_pending=3, batch_size=1)
    ids = writer.put([GOOD] * 5)
    assert [id is None for id in ids] == [False, False, False, True, True]
    assert writer.counts.dropped == 2
    store.go.set()
    assert eventually(lambda: writer.pending == 0)
    assert set(store.rows) == set(ids) - {None}


def test_closing_writes_what_is_waiting(store: RecordingStore, open_writer: OpenWriter) -> None:
    writer = open_writer(flush_interval_s=60, batch_size=8)
    writer.put([GOOD] * 20)
    writer.close()
    assert store.count() == 20


def test_what_an_outage_leaves_is_written_after_the_next_start(
    store: RecordingStore, open_writer: OpenWriter
) -> None:
    store.error = UnavailableError("down")
    first = open_writer(retry_s=60)
    ids = first.put([GOOD] * 5)
    started = time.monotonic()
    first.close()
    assert time.monotonic() - started < 9
    store.error = None
    assert eventually(lambda: open_writer().pending == 0)
    assert set(store.rows) == set(ids)


def test_a_known_interaction_is_not_stored_again_and_a_better_answer_replaces_it(
    store: RecordingStore, log: MemoryEventLog, open_writer: OpenWriter
) -> None:
    writer = open_writer(deduplicate=True)
    [first] = writer.put([GOOD])
    assert eventually(lambda: writer.pending == 0)
    writer.put([GOOD])
    assert eventually(lambda: writer.pending == 0)
    writer.put([replace(GOOD, response="poorer", quality=0.5)])
    assert eventually(lambda: writer.pending == 0)
    [better] = writer.put([replace(GOOD, response="better", quality=0.95)])
    assert eventually(lambda: writer.pending == 0)
    assert list(store.rows) == [better]
    counts = writer.counts
    assert (counts.written, counts.replaced, counts.repeated, counts.worse) == (2, 1, 1, 1)
    changes = [e.body for e in log.read(START, 10)]
    assert [[s["id"] for s in c["stored"]] for c in changes] == [[first], [], [better]]
    assert [c["repeated"] for c in changes] == [[], [first], []]
    assert [(c["removed"], c["reason"]) for c in changes[2:]] == [([first], "replaced")]


def test_ids_are_unique_ascend_in_time_and_fit_int64() -> None:
    now = [1_800_000_000_000]
    ids = ExampleIds(lambda: now[0])
    same_time = {ids.next() for _ in range(50)}
    now[0] += 1
    later = ids.next()
    assert len(same_time) == 50
    assert all(0 < i < later < 2**63 for i in same_time)
