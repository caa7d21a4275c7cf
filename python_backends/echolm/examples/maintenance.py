"""Keeps the store within its limits, in the background.

Eviction is a 0/1 knapsack (paper, §4.3): the weight of an example is the bytes of its texts,
its value the offloads that it enabled, decayed. The examples of least value per byte go first,
which is the greedy solution; it misses the best one by less than the value of a single example.

But of several examples that help with the same requests, one does the work of all, and the last
one's loss costs all offloads. So of the examples that are worth little those go first whose
request another one is similar enough to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from echolm.clock import now_ms
from echolm.errors import UnavailableError
from echolm.examples.consistency import reconcile
from echolm.examples.events import CHANGE, change
from echolm.examples.statistics import StatisticsTable
from echolm.examples.transfer import batched
from echolm.learning.event_log import EventLog
from echolm.settings import ExamplesSettings
from echolm.store.base import ExampleStore, search_in_background

logger = logging.getLogger("echolm")

_LEASE = "maintenance"
_BATCH = 2_048
"""Examples that are removed at a time: Milvus Lite takes 0.1 s for each removal, however large."""
_CHOICE = 8  # examples that are looked at for each one that has to go
_NEIGHBOURS = 8
_MISSING_SHARE = 0.05  # of all examples, from which on the store has lost some
_LOOKUPS = 16  # examples whose neighbours are looked up at a time


def choose_victims(
    candidates: Sequence[tuple[int, int]],
    neighbours: Callable[[Sequence[int]], Mapping[int, Collection[int]]],
    count: int,
    num_bytes: int,
    limit: int,
) -> list[int]:
    """Which examples make room.

    Args:
        candidates: id and bytes of examples, those of least value per byte first.
        neighbours: gives for each of some examples the ids of stored ones that would help with
            its request as well; called for a few at a time, and for no more than needed.
        count, num_bytes: examples and bytes to be freed.
        limit: most ids.
    """
    chosen: dict[int, None] = {}

    def enough() -> bool:
        return (count <= 0 and num_bytes <= 0) or len(chosen) == limit

    def replaceable() -> Iterator[tuple[int, int]]:
        """Those of which a neighbour stays."""
        for some in batched(candidates, _LOOKUPS):
            similar = neighbours([i for i, _ in some])
            for i, size in some:
                if not chosen.keys() >= set(similar.get(i, ())):
                    yield i, size

    ranked = chain(replaceable(), candidates)
    while not enough() and (candidate := next(ranked, None)):
        i, size = candidate
        if i not in chosen:
            chosen[i] = None
            count, num_bytes = count - 1, num_bytes - size
    return list(chosen)


@dataclass
class MaintenanceCounts:
    """Examples that were removed from the store, by reason."""

    expired: int = 0
    evicted: int = 0


@dataclass
class Maintenance:
    """Removes what is expired or beyond the limits. Only one replica at a time does this.

    Attributes:
        owner: name of this replica, different from all others'.
        same_similarity: gives the cosine from which two requests count as the same.
    """

    store: ExampleStore
    statistics: StatisticsTable
    log: EventLog
    settings: ExamplesSettings
    owner: str
    same_similarity: Callable[[], float] = lambda: 1.0
    now_ms: Callable[[], int] = now_ms
    counts: MaintenanceCounts = field(default_factory=MaintenanceCounts, init=False)
    _reconciled: bool = field(default=False, init=False)
    _missed: bool = field(default=False, init=False)

    def run(self, going_on: Callable[[], bool] = lambda: True) -> None:
        """Take in new events of the log and remove what must go, while ``going_on`` says so.

        Raises:
            UnavailableError: store, log or statistics cannot be reached; calling again goes on.
        """
        self.statistics.follow(self.log)
        if self._differs():
            found = reconcile(self.store, self.statistics, self.log)
            added, removed = found.without_statistics, found.without_example
            logger.info("example statistics: %d added, %d removed", added, removed)
        self._reconciled = True
        if not self.log.lease(_LEASE, self.owner, 4 * self.settings.maintenance_interval_s):
            return
        while going_on() and (ids := self.statistics.expired(self.now_ms(), _BATCH)):
            self.counts.expired += self._remove(ids, "expired")
        if max(self._excess(1.0)) <= 0:
            return
        # Somewhat below the limits, so that it need not be done again for each new example.
        while going_on():
            over_count, over_bytes = self._excess(self.settings.low_watermark)
            wanted = self.statistics.least_worth(
                _CHOICE * max(0, over_count), _CHOICE * max(0, over_bytes), _CHOICE * _BATCH
            )
            if not wanted:
                return
            ids = choose_victims(wanted, self._neighbours, over_count, over_bytes, _BATCH)
            self.counts.evicted += self._remove(ids, "evicted")

    def _differs(self) -> bool:
        """Whether store and statistics have to be compared example by example.

        At the start any difference counts; later that examples are missing from the store, as
        after its collection was dropped. What is just being written or removed is missing for a
        moment only, so it must be many, in two rounds.
        """
        stored, known = self.store.count(), self.statistics.totals()[0]
        if not self._reconciled:
            return stored != known or not self.statistics.is_complete
        before, self._missed = self._missed, known - stored > _MISSING_SHARE * known
        return before and self._missed

    def _neighbours(self, ids: Sequence[int]) -> dict[int, list[int]]:
        """For each example the ids of others of its scope whose requests count as the same."""
        started = time.monotonic()
        stored = self.store.get(ids)
        rows = search_in_background(self.store, stored, _NEIGHBOURS, self.now_ms())
        # Half of the time at least the store has only requests to serve.
        time.sleep(time.monotonic() - started)
        least = self.same_similarity()
        return {
            example.id: [c.id for c in row if c.id != example.id and c.similarity >= least]
            for (example, _), row in zip(stored, rows, strict=True)
        }

    def _excess(self, share: float) -> tuple[int, int]:
        """Examples and bytes beyond a share of the limits."""
        count, num_bytes = self.statistics.totals()
        most, most_bytes = self.settings.max_stored, self.settings.max_stored_bytes
        return count - int(share * most), num_bytes - int(share * most_bytes)

    def _remove(self, ids: list[int], reason: str) -> int:
        # Should it end in between, the statistics still name them; they are removed once more.
        self.store.delete(ids)
        self.log.append(CHANGE, change(removed=ids, reason=reason))
        self.statistics.follow(self.log)
        if left := len(self.statistics.known(ids)):
            raise UnavailableError(
                f"example statistics: expected {len(ids)} examples gone, got {left} still there"
            )
        return len(ids)
