"""Whether store and statistics agree and no request is stored twice; and what mends it.

All functions raise UnavailableError if store, statistics or log cannot be reached. What mends goes
on where it ended when it is called again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from echolm.examples.deduplication import is_better, plain, request_key
from echolm.examples.events import CHANGE, change
from echolm.examples.replacement import finish_interrupted
from echolm.examples.statistics import StatisticsTable
from echolm.examples.transfer import batched
from echolm.learning.event_log import EventLog
from echolm.store.base import Example, ExampleStore

# For so long Milvus hides an example at most while it is written once more, as after a crash.
_HIDDEN_S = 0.25
# Ids that are looked up in the store at a time: a server may wait 0.2 s before each answer.
_PAGE = 4_096
_BATCH = 2_048  # removals in an event

OnScanned = Callable[[list[Example]], None]
"""Called with the examples that were looked at, some at a time."""


@dataclass(frozen=True)
class Findings:
    """How many of each there are, or were.

    Attributes:
        without_statistics: stored examples of which there are no statistics.
        without_example: examples of which there are statistics, and which are gone.
        duplicates: examples whose request is stored already in the same scope.
        interrupted: examples whose replacement by a better answer was begun and has not ended.
        damaged: rows of the store that are no examples, which nothing else sees.
    """

    without_statistics: int = 0
    without_example: int = 0
    duplicates: int = 0
    interrupted: int = 0
    damaged: int = 0

    @property
    def any(self) -> bool:
        return self != Findings()


@dataclass
class _Requests:
    """Ids of the examples of each request: of the first one, and of all where there are more."""

    first: dict[int, int] = field(default_factory=dict)
    repeated: dict[int, list[int]] = field(default_factory=dict)

    def add(self, examples: Sequence[Example]) -> None:
        for example in examples:
            # By hash, since there may be a million; whoever removes one must look again.
            key = request_key(example.scope, example.request)
            first = self.first.setdefault(key, example.id)
            if first != example.id:
                self.repeated.setdefault(key, [first]).append(example.id)


def examine(
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    on_scanned: OnScanned = lambda examples: None,
    settle_s: float = 1.0,
) -> Findings:
    """Look, and change nothing.

    Args:
        settle_s: seconds after which a difference counts. A running server may just be between a
            change of the store and that of the log.
    """
    statistics.follow(log)
    requests = _Requests()
    missing: list[int] = []
    for examples, unknown in _scan(store, statistics):
        missing += [example.id for example in unknown]
        requests.add(examples)
        on_scanned(examples)
    lost = _without_example(store, statistics)
    interrupted = statistics.replacements()
    doubles = [i for ids in requests.repeated.values() for i in ids]
    gone: set[int] = set()
    if missing or lost or interrupted or doubles:
        lost = _still_lost(store, statistics, log, lost, settle_s)
        gone = set(_not_in_store(store, [*missing, *doubles]))
        missing = [i for i in missing if i not in gone and not statistics.known([i])]
        interrupted = [begun for begun in statistics.replacements() if begun in interrupted]
    # Both answers of a replacement that was cut short are one finding, not two.
    gone |= {begun.old for begun in interrupted}
    duplicates = sum(
        max(0, len([i for i in ids if i not in gone]) - 1) for ids in requests.repeated.values()
    )
    damaged = sum(map(len, store.damaged()))
    return Findings(len(missing), len(lost), duplicates, len(interrupted), damaged)


def repair(
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    deduplicate: bool = True,
    on_scanned: OnScanned = lambda examples: None,
) -> Findings:
    """Mend what :func:`examine` finds; gives what was mended.

    Damaged rows are removed, interrupted replacements finished, statistics added and removed. Of
    examples of one
    request that one stays which would have, had they come one after the other: the first, unless
    a later answer is better. What the others were used for is credited to it. Without
    ``deduplicate`` all of them stay.
    """
    requests = _Requests()

    def look(examples: list[Example]) -> None:
        requests.add(examples)
        on_scanned(examples)

    damaged = _remove_damaged(store, log)
    found = replace(reconcile(store, statistics, log, look), damaged=damaged)
    if deduplicate:
        merged = sum(_merge(store, log, ids) for ids in requests.repeated.values())
        statistics.follow(log)
        found = replace(found, duplicates=merged)
    return found


def reconcile(
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    on_scanned: OnScanned = lambda examples: None,
) -> Findings:
    """Add statistics of examples that have none, remove those of examples that are gone.

    A store may be older than its statistics, may have been filled by other means, or have been
    restored from a copy. What a process has left half done is finished first. Gives what was
    mended.
    """
    interrupted = finish_interrupted(store, statistics, log)
    statistics.remove_damaged()  # those whose example is there are added again
    added = 0
    for examples, unknown in _scan(store, statistics):
        added += statistics.adopt(change(unknown)["stored"]) if unknown else 0
        on_scanned(examples)
    if lost := _without_example(store, statistics):
        lost = _still_lost(store, statistics, log, lost, _HIDDEN_S)
    for part in batched(lost, _BATCH):
        log.append(CHANGE, change(removed=part, reason="not_in_store"))
    statistics.follow(log)
    statistics.completed()
    return Findings(added, len(lost), interrupted=interrupted)


def _remove_damaged(store: ExampleStore, log: EventLog) -> int:
    """Remove rows that are no examples; gives how many there were."""
    removed = 0
    for ids in store.damaged():
        log.append(CHANGE, change(removed=ids, reason="damaged"))
        store.delete(ids)
        removed += len(ids)
    return removed


def _scan(
    store: ExampleStore, statistics: StatisticsTable
) -> Iterator[tuple[list[Example], list[Example]]]:
    """All stored examples, some at a time, and those among them without statistics."""
    for batch in store.scan(embeddings=False):
        examples = [example for example, _ in batch]
        known = statistics.known([example.id for example in examples])
        yield examples, [example for example in examples if example.id not in known]


def _without_example(store: ExampleStore, statistics: StatisticsTable) -> list[int]:
    """Ids of all examples of which there are statistics, and which are not in the store."""
    return [i for ids in statistics.pages(_PAGE) for i in _not_in_store(store, ids)]


def _still_lost(
    store: ExampleStore, statistics: StatisticsTable, log: EventLog, lost: list[int], wait_s: float
) -> list[int]:
    """Those of the ids that are neither in the store after a while nor removed by the log."""
    time.sleep(wait_s)
    statistics.follow(log)
    return [i for i in _not_in_store(store, lost) if statistics.known([i])]


def _not_in_store(store: ExampleStore, ids: Sequence[int]) -> list[int]:
    """Those of the ids that no stored example has."""
    stored: set[int] = set()
    for page in batched(ids, _PAGE):
        stored |= store.present(page)
    return [i for i in ids if i not in stored]


def _merge(store: ExampleStore, log: EventLog, ids: Sequence[int]) -> int:
    """Leave one example of each request among these; gives how many were removed."""
    same: dict[tuple[int, str], list[Example]] = defaultdict(list)
    for example, _ in store.get(ids):
        same[example.scope, plain(example.request)].append(example)
    merged = 0
    for examples in same.values():
        kept, *later = sorted(examples, key=lambda e: e.id)
        for example in later:
            if is_better(example, kept):
                kept = example
        removed = [example.id for example in examples if example is not kept]
        if removed:
            # The log first: what is left in the store if it ends here is found once more.
            pairs = [(i, kept.id) for i in removed]
            log.append(CHANGE, change(removed=removed, reason="duplicate", replacements=pairs))
            store.delete(removed)
            merged += len(removed)
    return merged
