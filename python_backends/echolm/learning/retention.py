"""Removes what is old from the learning log, once snapshots stand for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from echolm.clock import now_ms
from echolm.learning.event_log import START, EventLog
from echolm.learning.learner import SEPARATOR

logger = logging.getLogger("echolm")

_LEASE, _LEASE_S = "retention", 3_600.0
_DAY_MS = 24 * 3_600_000
_STALE_MS = 7 * _DAY_MS
"""Least age at which a snapshot counts as abandoned; those in use are younger than a day."""


@dataclass
class Retention:
    """Removes events that are older than ``retention_days`` and that all snapshots have taken in.

    A snapshot that nobody has saved for so long belongs to a configuration that nobody uses any
    more: it is dropped and holds nothing up. Only one replica at a time does this.

    Attributes:
        needed: names of snapshots (without fingerprints) of which there must be one.
        save: saves the caller's own snapshot of the log so far; called before a removal.
        owner: name of this replica, different from all others'.
    """

    log: EventLog
    retention_days: float
    needed: Collection[str]
    save: Callable[[], None]
    owner: str
    now_ms: Callable[[], int] = now_ms
    _not_before_ms: int = field(default=0, init=False)

    def trim(self) -> int:
        """Remove what may go, once a day; gives how many events that were.

        Raises:
            UnavailableError: the log cannot be reached; calling again goes on.
        """
        now, keep_ms = self.now_ms(), int(self.retention_days * _DAY_MS)
        if not keep_ms or now < self._not_before_ms:
            return 0
        oldest = self.log.read(START, 1)
        has_old_events = bool(oldest) and oldest[0].at_ms < now - keep_ms
        if not has_old_events or not self.log.lease(_LEASE, self.owner, _LEASE_S):
            return 0
        self.save()
        positions, taken_in = [], set()
        for snapshot in self.log.snapshots():
            if snapshot.saved_at_ms < now - max(keep_ms, _STALE_MS):
                logger.info("snapshot %s is dropped: nobody uses it any more", snapshot.name)
                self.log.drop_snapshot(snapshot.name)
            else:
                positions.append(snapshot.position)
                taken_in.add(snapshot.name.partition(SEPARATOR)[0])
        if missing := ", ".join(sorted(set(self.needed) - taken_in)):
            logger.warning(
                "learning log: nothing is removed, since there is no snapshot of %s", missing
            )
            return 0
        removed = self.log.trim(now - keep_ms, positions)
        if removed:
            self._not_before_ms = now + _DAY_MS
            logger.info("learning log: %d old events removed", removed)
        return removed
