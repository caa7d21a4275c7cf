"""Whether store and accounts agree and no request is stored twice; and what mends it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from echolm.examples.deduplication import is_better, plain
from echolm.examples.events import CHANGE, change
from echolm.examples.maintenance import accounts_without_example, not_in_store, reconcile
from echolm.examples.replacement import finish_interrupted
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import EventLog
from echolm.store.base import Example, ExampleStore

_SETTLE_S = 1.0

OnScanned = Callable[[list[Example]], None]


@dataclass(frozen=True)
class Findings:
    """How many of each there are, or were.

    Attributes:
        without_account: stored examples that the statistics does not know.
        without_example: accounts whose example is gone.
        duplicates: examples whose request is stored already, for the same tenant and system
            prompt.
        interrupted: examples whose replacement by a better answer was begun and has not ended.
    """

    without_account: int = 0
    without_example: int = 0
    duplicates: int = 0
    interrupted: int = 0

    @property
    def any(self) -> bool:
        return self != Findings()


class _Requests:
    """Ids of the examples of each request."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}
        self.repeated: dict[int, list[int]] = {}

    def add(self, examples: Sequence[Example]) -> None:
        for example in examples:
            # By hash, since there may be a million; whoever removes one must look again.
            key = hash((example.scope, plain(example.request)))
            first = self._first.setdefault(key, example.id)
            if first != example.id:
                self.repeated.setdefault(key, [first]).append(example.id)


def examine(
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    on_scanned: OnScanned = lambda examples: None,
    settle_s: float = _SETTLE_S,
) -> Findings:
    """Look, and change nothing.

    Args:
        on_scanned: is told of the examples that were looked at.
        settle_s: after which a difference counts. A running server may just be between a
            change of the store and that of the log.

    Raises:
        UnavailableError: store, statistics or log cannot be reached.
    """
    statistics.follow(log)
    requests = _Requests()
    missing: list[int] = []
    for batch in store.scan(embeddings=False):
        examples = [example for example, _ in batch]
        known = statistics.known([example.id for example in examples])
        missing += [example.id for example in examples if example.id not in known]
        requests.add(examples)
        on_scanned(examples)
    lost = accounts_without_example(store, statistics)
    interrupted = statistics.successions()
    doubles = [i for ids in requests.repeated.values() for i in ids]
    if missing or lost or interrupted or doubles:
        time.sleep(settle_s)
        statistics.follow(log)
        lost = [i for i in not_in_store(store, lost) if statistics.known([i])]
        gone = set(not_in_store(store, [*missing, *doubles]))
        missing = [i for i in missing if i not in gone and not statistics.known([i])]
        interrupted = [one for one in statistics.successions() if one in interrupted]
    else:
        gone = set()
    # Both answers of a replacement that was cut short are one finding, not two.
    gone |= {one.old for one in interrupted}
    duplicates = sum(
        max(0, len([i for i in ids if i not in gone]) - 1) for ids in requests.repeated.values()
    )
    return Findings(len(missing), len(lost), duplicates, len(interrupted))


def repair(
    store: ExampleStore,
    statistics: StatisticsTable,
    log: EventLog,
    deduplicate: bool = True,
    on_scanned: OnScanned = lambda examples: None,
) -> Findings:
    """Mend what :func:`examine` finds; gives what was mended.

    Interrupted replacements are finished, accounts opened and closed. Of examples of one request
    that one stays which would have, had they come one after the other: the first, unless a later
    answer is better. What the others were used for is credited to it.

    Args:
        deduplicate: whether a request may be stored but once.

    Raises:
        UnavailableError: store, statistics or log cannot be reached; calling again goes on.
    """
    requests = _Requests()

    def look(examples: list[Example]) -> None:
        requests.add(examples)
        on_scanned(examples)

    interrupted = finish_interrupted(store, statistics, log)
    opened, closed = reconcile(store, statistics, log, look)
    merged = 0
    if deduplicate:
        merged = sum(_merge(store, log, ids) for ids in requests.repeated.values())
    statistics.follow(log)
    return Findings(opened, closed, merged, interrupted)


def _merge(store: ExampleStore, log: EventLog, ids: Sequence[int]) -> int:
    """Leave one example of each request among these; gives how many were removed."""
    same: dict[tuple[int, str], list[Example]] = defaultdict(list)
    for example, _ in store.get(ids):
        same[example.scope, plain(example.request)].append(example)
    merged = 0
    for examples in same.values():
        examples.sort(key=lambda e: e.id)
        kept = examples[0]
        for example in examples[1:]:
            if is_better(example, kept):
                kept = example
        removed = [example.id for example in examples if example is not kept]
        if removed:
            # The log first: what is left in the store if it ends here is found once more.
            succeeded = [(i, kept.id) for i in removed]
            log.append(CHANGE, change(removed=removed, reason="duplicate", succeeded=succeeded))
            store.delete(removed)
            merged += len(removed)
    return merged
