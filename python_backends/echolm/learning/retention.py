"""Removes what is old from the learning log, once snapshots stand for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from echolm.clock import now_ms
from echolm.learning.event_log import START, EventLog
from echolm.learning.learner import SEPARATOR

logger = logging.getLogger("echolm")

_LEASE, _LEASE_S = "retention", 3_600.0
_DAY_MS = 24 * 3_600_000
_STALE_DAYS = 7.0
"""Least age at which a snapshot counts as abandoned; those in use are younger than a day."""


class Retention:
    """Removes events that are older than ``retention_days`` and that all snapshots have taken in.

    A snapshot that nobody has saved for so long belongs to a configuration that nobody uses any
    more: it is dropped and holds nothing up. Only one replica at a time does this.

    Args:
        needed: names of snapshots (without fingerprints) of which there must be one.
        save: saves the caller's own snapshot of the log so far; called before a removal.
        owner: name of this replica, different from all others'.
    """

    def __init__(
        self,
        log: EventLog,
        retention_days: float,
        needed: Collection[str],
        save: Callable[[], None],
        owner: str,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._log = log
        self._keep_ms = int(retention_days * _DAY_MS)
        self._stale_ms = max(self._keep_ms, int(_STALE_DAYS * _DAY_MS))
        self._needed = frozenset(needed)
        self._save = save
        self._owner = owner
        self._now_ms = now_ms
        self._not_before_ms = 0

    def trim(self) -> int:
        """Remove what may go, once a day; gives how many events that were.

        Raises:
            UnavailableError: the log cannot be reached; calling again goes on.
        """
        if not self._keep_ms:
            return 0
        now = self._now_ms()
        if now < self._not_before_ms:
            return 0
        before_ms = now - self._keep_ms
        oldest = self._log.read(START, 1)
        if not oldest or oldest[0].at_ms >= before_ms:
            return 0
        if not self._log.lease(_LEASE, self._owner, _LEASE_S):
            return 0
        self._save()
        taken_in = []
        for snapshot in self._log.snapshots():
            if snapshot.saved_at_ms < now - self._stale_ms:
                logger.info("snapshot %s is dropped: nobody uses it any more", snapshot.name)
                self._log.drop_snapshot(snapshot.name)
            else:
                taken_in.append(snapshot)
        if missing := self._needed - {
            snapshot.name.partition(SEPARATOR)[0] for snapshot in taken_in
        }:
            logger.warning(
                "learning log: nothing is removed, since there is no snapshot of %s",
                ", ".join(sorted(missing)),
            )
            return 0
        removed = self._log.trim(before_ms, [snapshot.position for snapshot in taken_in])
        if removed:
            self._not_before_ms = now + _DAY_MS
            logger.info("learning log: %d old events removed", removed)
        return removed
