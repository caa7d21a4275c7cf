"""Keeps the store within its limits, in the background.

Eviction is a 0/1 knapsack (paper, §4.3): the weight of an example is the bytes of its texts,
its value the offloads that it enabled, decayed. The examples of least value per byte go first,
which is the greedy solution; it misses the best one by less than the value of a single example.

That takes the values for independent, which they are not: of several examples that help with the
same requests, one does the work of all, and the last one's loss costs all offloads. So of the
examples that are worth little those go first whose request another one is similar enough to.
``scripts/bench_eviction.py`` compares.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from echolm.clock import now_ms
from echolm.errors import UnavailableError
from echolm.examples.consistency import reconcile
from echolm.examples.events import CHANGE, change
from echolm.examples.statistics import StatisticsTable
from echolm.learning.event_log import EventLog
from echolm.settings import ExamplesSettings
from echolm.store.base import ExampleStore, Query, search_in_background

logger = logging.getLogger("echolm")

_LEASE = "maintenance"
_BATCH = 2_048
"""Examples that are removed at a time: Milvus Lite takes 0.1 s for each removal, however large."""
_CHOICE = 8
"""Examples that are looked at for each one that has to go."""
_NEIGHBOURS = 8
_LOOKUPS = 16
"""Examples whose neighbours are looked up at a time."""


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
        count: examples to be freed.
        num_bytes: bytes to be freed.
        limit: most ids.
    """
    chosen: dict[int, None] = {}

    def enough() -> bool:
        return (count <= 0 and num_bytes <= 0) or len(chosen) == limit

    for start in range(0, len(candidates), _LOOKUPS):
        if enough():
            break
        some = candidates[start : start + _LOOKUPS]
        similar = neighbours([i for i, _ in some])
        for i, size in some:
            if not enough() and not chosen.keys() >= set(similar.get(i, ())):
                chosen[i] = None
                count, num_bytes = count - 1, num_bytes - size
    for i, size in candidates:
        if not enough() and i not in chosen:
            chosen[i] = None
            count, num_bytes = count - 1, num_bytes - size
    return list(chosen)


@dataclass
class MaintenanceCounts:
    """Examples that were removed from the store, by reason."""

    expired: int = 0
    evicted: int = 0


class Maintenance:
    """Removes what is expired or beyond the limits. Only one replica at a time does this.

    Args:
        owner: name of this replica, different from all others'.
        similarity_saturation: cosine from which two requests count as the same
            (``routing.similarity_saturation``).
    """

    def __init__(
        self,
        store: ExampleStore,
        statistics: StatisticsTable,
        log: EventLog,
        settings: ExamplesSettings,
        owner: str,
        similarity_saturation: float = 1.0,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._store = store
        self._statistics = statistics
        self._log = log
        self._settings = settings
        self._owner = owner
        self._similarity_saturation = similarity_saturation
        self._now_ms = now_ms
        self._reconciled = False
        self.counts = MaintenanceCounts()

    def run(self, going_on: Callable[[], bool] = lambda: True) -> None:
        """Take in new events of the log and remove what must go.

        Args:
            going_on: called between batches; False ends it early.

        Raises:
            UnavailableError: store, log or statistics cannot be reached; calling again goes on.
        """
        self._statistics.follow(self._log)
        if not self._reconciled:
            same_number = self._store.count() == self._statistics.totals()[0]
            if not (same_number and self._statistics.is_complete):
                added, removed = reconcile(self._store, self._statistics, self._log)
                logger.info("example statistics: %d added, %d removed", added, removed)
            self._reconciled = True
        if not self._log.lease(_LEASE, self._owner, 4 * self._settings.maintenance_interval_s):
            return
        while going_on() and (ids := self._statistics.expired(self._now_ms(), _BATCH)):
            self.counts.expired += self._remove(ids, "expired")
        over_count, over_bytes = self._excess(1.0)
        if over_count <= 0 and over_bytes <= 0:
            return
        # Somewhat below the limits, so that it need not be done again for each new example.
        while going_on():
            over_count, over_bytes = self._excess(self._settings.low_watermark)
            wanted = self._statistics.least_worth(
                _CHOICE * max(0, over_count), _CHOICE * max(0, over_bytes), _CHOICE * _BATCH
            )
            if not wanted:
                return
            ids = choose_victims(wanted, self._neighbours, over_count, over_bytes, _BATCH)
            self.counts.evicted += self._remove(ids, "evicted")

    def _neighbours(self, ids: Sequence[int]) -> dict[int, list[int]]:
        """For each example the ids of others of its scope whose requests count as the same."""
        started = time.monotonic()
        stored = self._store.get(ids)
        if not stored:
            return {}
        queries = [Query(example.tenant, example.scope) for example, _ in stored]
        embeddings = np.stack([embedding for _, embedding in stored])
        now_ms = self._now_ms()
        rows = search_in_background(self._store, embeddings, queries, _NEIGHBOURS, now_ms)
        # Half of the time at least the store has only requests to serve.
        time.sleep(time.monotonic() - started)
        return {
            example.id: [
                c.id
                for c in row
                if c.id != example.id and c.similarity >= self._similarity_saturation
            ]
            for (example, _), row in zip(stored, rows, strict=True)
        }

    def _excess(self, share: float) -> tuple[int, int]:
        """Examples and bytes beyond a share of the limits."""
        count, num_bytes = self._statistics.totals()
        settings = self._settings
        return (
            count - int(share * settings.max_stored),
            num_bytes - int(share * settings.max_stored_bytes),
        )

    def _remove(self, ids: list[int], reason: str) -> int:
        # Should it end in between, the statistics still name them; they are removed once more.
        self._store.delete(ids)
        self._log.append(CHANGE, change(removed=ids, reason=reason))
        self._statistics.follow(self._log)
        if left := self._statistics.known(ids):
            raise UnavailableError(
                f"example statistics: expected {len(ids)} examples gone, "
                f"got {len(left)} still there"
            )
        return len(ids)
