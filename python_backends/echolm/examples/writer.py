"""Writes admitted examples to the store in batches, off the request's path."""

from __future__ import annotations

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from echolm.clock import now_ms
from echolm.errors import UnavailableError
from echolm.examples.deduplication import NEW, Comparison, DuplicateFinder, Finding
from echolm.examples.events import CHANGE, change
from echolm.examples.statistics_updates import EPOCH_MS
from echolm.examples.write_ahead_log import WriteAheadLog
from echolm.learning.event_log import EventLog
from echolm.primitives import Interaction
from echolm.settings import ExamplesSettings
from echolm.store.base import (
    FRESH_VALUE,
    MAX_ANSWER_KEYS,
    NEVER,
    Example,
    ExampleStore,
    Stored,
    scope_key,
)

logger = logging.getLogger("echolm")


@dataclass(frozen=True)
class ExampleIds:
    """Unique 63-bit ids, ascending in time: 41 bits of milliseconds, 22 random bits.

    Replicas need no coordination, and the order of ids is the order of admission.
    """

    now_ms: Callable[[], int] = now_ms

    def next(self) -> int:
        """A new id."""
        return ((self.now_ms() - EPOCH_MS) << 22) | secrets.randbits(22)


@dataclass
class WriterCounts:
    """What became of the interactions that a writer was given.

    Attributes:
        written: new examples in the store.
        replaced: of these, better answers that took the place of known ones.
        repeated: request and answer were known.
        worse: the request was known, with an answer that is no worse.
        dropped: there was no room in the write-ahead log, or the store refused them for good.
        failures: attempts that did not reach store or log, and are repeated.
    """

    written: int = 0
    replaced: int = 0
    repeated: int = 0
    worse: int = 0
    dropped: int = 0
    failures: int = 0

    def add(self, comparisons: Sequence[Comparison]) -> None:
        """Count what :func:`store_batch` has done."""
        findings = Counter(comparison.finding for comparison in comparisons)
        self.written += findings[Finding.NEW] + findings[Finding.BETTER]
        self.replaced += findings[Finding.BETTER]
        self.repeated += findings[Finding.REPEATED] + findings[Finding.CONFIRMED]
        self.worse += findings[Finding.WORSE]


@dataclass
class ExampleWriter:
    """One thread that stores what is put into a write-ahead log.

    While the store does not answer, interactions wait in the write-ahead log; when it is full,
    new ones are dropped and counted. What the store refuses for good is dropped, too, and does not
    hold up the rest of its batch. What is left at the end is written after the next start. The
    learning log gets events of what was stored and replaced.
    """

    store: ExampleStore
    write_ahead_log: WriteAheadLog
    log: EventLog
    settings: ExamplesSettings
    retry_s: float = 2.0
    counts: WriterCounts = field(default_factory=WriterCounts, init=False)

    def __post_init__(self) -> None:
        self._duplicates = DuplicateFinder(self.store)
        self._ids = ExampleIds()
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._wake.set()  # an earlier process may have left something
        self._thread = threading.Thread(target=self._run, name="example-writer", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Examples that wait to be written."""
        return len(self.write_ahead_log)

    def put(self, interactions: Sequence[Interaction]) -> list[int | None]:
        """Take interactions for good; gives their new ids, None where there was no room.

        Raises:
            UnavailableError: the write-ahead log cannot be written; none of them was taken.
        """
        entries = [
            (new_example(new, self._ids.next(), self.settings), new.embedding)
            for new in interactions
        ]
        taken = self.write_ahead_log.append(entries)
        self.counts.dropped += len(entries) - taken
        self._wake.set()
        return [example.id if k < taken else None for k, (example, _) in enumerate(entries)]

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is waiting, if the store takes it at once, and stop."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self._write_all()
            except Exception as error:  # the write-ahead log itself; the thread outlives it
                self.counts.failures += 1
                logger.error("examples not written, will retry: %s", error)
                self._stopping.wait(self.retry_s)
                self._wake.set()
            if self._stopping.is_set():
                return

    def _write_all(self) -> None:
        """Write until the write-ahead log is empty, whole batches at once where there are any."""
        while True:
            if len(self.write_ahead_log) < self.settings.batch_size:
                self._stopping.wait(self.settings.flush_interval_s)
            batch = self.write_ahead_log.oldest(self.settings.batch_size)
            if not batch or not self._write(batch):
                return

    def _write(self, batch: Sequence[Stored]) -> bool:
        """Write a batch, however long it takes; False if it has to stay for the next start."""
        while True:
            try:
                self._store_batch(batch)
                return True
            except UnavailableError as error:
                self.counts.failures += 1
                logger.warning("examples not written, will retry: %s", error)
                if self._stopping.is_set() or self._stopping.wait(self.retry_s):
                    return False
            except Exception as error:  # the thread must outlive any batch
                self.counts.failures += 1
                if len(batch) > 1:
                    return all(self._write([entry]) for entry in batch)
                logger.error("example %d dropped: %s", batch[0][0].id, error)
                self.counts.dropped += 1
                self.write_ahead_log.remove([batch[0][0].id])
                return True

    def _store_batch(self, batch: Sequence[Stored]) -> None:
        # Each step may be the last before a crash, and all are repeated after one.
        duplicates = self._duplicates if self.settings.deduplicate else None
        compared = store_batch(batch, self.store, self.log, duplicates)
        self.write_ahead_log.remove([example.id for example, _ in batch])
        self.counts.add(compared)


def new_example(new: Interaction, id: int, settings: ExamplesSettings) -> Example:
    """The example that an admitted interaction becomes."""
    now, ttl_ms = now_ms(), int(settings.ttl_s * 1_000)
    return Example(
        id=id,
        request=new.request,
        response=new.response,
        tenant=new.tenant,
        scope=scope_key(new.tenant, new.system_prompt),
        source_llm=new.llm,
        quality=new.quality,
        created_at_ms=now,
        updated_at_ms=now,
        expires_at_ms=now + ttl_ms if ttl_ms else NEVER,
        # It need not do what other examples do already.
        value=FRESH_VALUE * (1.0 - new.help_probability),
        answer_keys=new.answer_key,
    )


def store_batch(
    batch: Sequence[Stored],
    store: ExampleStore,
    log: EventLog,
    duplicates: DuplicateFinder | None,
) -> list[Comparison]:
    """Store what is new among examples, and log it; after a crash it may be done again.

    Args:
        duplicates: finds what the store has already; None stores all.

    Returns:
        What each example was to the store: what is new or better is in it now.

    Raises:
        UnavailableError: store or log cannot be written.
    """
    if not store.keeps_answer_keys:
        batch = [(replace(example, answer_keys=""), e) for example, e in batch]
    compared = [NEW] * len(batch) if duplicates is None else duplicates.compare(batch, now_ms())
    pairs = list(zip(batch, compared, strict=True))
    fresh = [entry for entry, c in pairs if c.finding in (Finding.NEW, Finding.BETTER)]
    examples = [example for example, _ in fresh]
    if fresh:
        store.upsert(examples, np.stack([embedding for _, embedding in fresh]))
    replacements = [(c.known, e.id) for (e, _), c in pairs if c.finding is Finding.BETTER]
    replaced = [old for old, _ in replacements]
    if replaced:
        store.delete(replaced)
    confirmed = {c.known: e for (e, _), c in pairs if c.finding is Finding.CONFIRMED}
    if confirmed:
        _add_answer_keys(store, confirmed)
    known = (Finding.REPEATED, Finding.CONFIRMED)
    repeated = [c.known for c in compared if c.finding in known]
    if fresh or repeated:
        reason = "replaced" if replaced else ""
        log.append(CHANGE, change(examples, replaced, reason, repeated, replacements))
    return compared


def _add_answer_keys(store: ExampleStore, confirmed: Mapping[int, Example]) -> None:
    """Write known examples anew, with the keys under which their answers were given, too."""
    stored = store.get(list(confirmed))
    examples = []
    for example, _ in stored:
        keys = [*example.answer_keys.split(), *confirmed[example.id].answer_keys.split()]
        newest = " ".join(dict.fromkeys(keys[-MAX_ANSWER_KEYS:]))
        examples.append(replace(example, answer_keys=newest))
    if examples:
        store.upsert(examples, np.stack([embedding for _, embedding in stored]))
