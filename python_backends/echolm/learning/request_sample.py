"""A sample of the requests that a process sees, and the statistics that are made of it.

What leaves a tenant by them are averages over all tenants' requests: a mean, 16 directions of
spread and quantiles of cosines. No request, no embedding of one and no name can be read from them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm.clock import now_ms
from echolm.learning.event_log import Event, EventLog
from echolm.learning.learner import OutdatedError
from echolm.learning.request_statistics import (
    LEAST_SAMPLE,
    REQUEST_STATISTICS,
    RequestStatistics,
    fit,
)
from echolm.learning.snapshot import fingerprint

logger = logging.getLogger("echolm")

_CAPACITY = 4_096
_GROWTH = 4  # a sample so many times as large gives new statistics
_RENEWED_MS = 24 * 3_600_000  # age at which statistics are made anew, since requests change
_LEASE_S = 60.0
_RETRIED_MS = 600_000  # after which a sample of equal requests is looked at again


class NewestStatistics:
    """The newest statistics in the learning log, for those who only read them.

    Args:
        dimension: of the embeddings; statistics of another embedding model's are not used.

    Attributes:
        statistics: replaced as a whole.
        version: of the newest statistics of any dimension.
        at_ms: when they were logged.
    """

    name = "request_statistics"
    kinds = frozenset({REQUEST_STATISTICS})

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self.statistics = RequestStatistics.none()
        self.version = self.at_ms = 0
        self.fingerprint = fingerprint({"version": 1, "dimension": dimension})

    def apply(self, event: Event) -> None:
        statistics = RequestStatistics.read(event.body)
        if statistics.version <= self.version:
            # Two processes measured at the same time; the first one's measurement counts.
            raise OutdatedError(f"request statistics: version {statistics.version}")
        self.version, self.at_ms = statistics.version, event.at_ms
        if len(statistics.mean) == self._dimension:
            self.statistics = statistics

    def state(self) -> dict[str, Any]:
        body = self.statistics.body() if self.statistics.version else {}
        return {"version": self.version, "at_ms": self.at_ms, "body": body}

    def restore(self, state: Mapping[str, Any]) -> None:
        body = state["body"]
        self.statistics = RequestStatistics.read(body) if body else RequestStatistics.none()
        self.version, self.at_ms = int(state["version"]), int(state["at_ms"])


class RequestSample:
    """Keeps the last requests, and logs statistics of them when there are enough new ones.

    Statistics are due once 64 requests are held, each time that four times as many are held as the
    newest statistics were made of, and after a day. Of all processes one at a time logs them.

    Args:
        newest: what the log has already.
        owner: name of this process, different from all others'.
    """

    def __init__(
        self,
        log: EventLog,
        newest: NewestStatistics,
        owner: str,
        now_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._log, self._newest, self._owner, self._now_ms = log, newest, owner, now_ms
        self._embeddings = np.zeros((0, 0), dtype=np.float32)
        self._nearest, self._lengths = np.zeros((2, _CAPACITY), dtype=np.float32)
        self._seen = 0
        self._not_before_ms = 0
        self._lock = threading.Lock()

    def add(
        self,
        embeddings: Sequence[NDArray[np.float32]],
        nearest: Sequence[float],
        lengths: Sequence[int],
    ) -> None:
        """Take in requests that may be learnt from.

        Args:
            embeddings: FP32 [D] each, unit length.
            nearest: cosine of each request's most similar example; NaN if there is none.
            lengths: characters of each request.
        """
        if not embeddings:
            return
        with self._lock:
            if not len(self._embeddings):
                self._embeddings = np.zeros((_CAPACITY, len(embeddings[0])), dtype=np.float32)
            places = np.arange(self._seen, self._seen + len(embeddings)) % _CAPACITY
            self._embeddings[places] = embeddings
            self._nearest[places], self._lengths[places] = nearest, lengths
            self._seen += len(embeddings)

    def log_if_due(self) -> bool:
        """Log new statistics if they are due and no other process does; whether it was done.

        Raises:
            UnavailableError: the log cannot be reached; the next call tries again.
        """
        if not self._is_due() or not self._log.lease(REQUEST_STATISTICS, self._owner, _LEASE_S):
            return False
        with self._lock:
            held = self._held
            embeddings = self._embeddings[:held].copy()
            nearest, lengths = self._nearest[:held].copy(), self._lengths[:held].copy()
        try:
            known = nearest[np.isfinite(nearest)]
            version = self._newest.version + 1
            statistics = fit(embeddings, known, version, lengths=lengths)
        except ValueError as error:
            self._not_before_ms = self._now_ms() + _RETRIED_MS
            logger.info("%s", error)
            return False
        self._log.append(REQUEST_STATISTICS, statistics.body())
        return True

    @property
    def _held(self) -> int:
        return min(self._seen, _CAPACITY)

    def _is_due(self) -> bool:
        held, made_of, now = self._held, self._newest.statistics.count, self._now_ms()
        if held < LEAST_SAMPLE or now < self._not_before_ms:
            return False
        if held >= _GROWTH * made_of:
            return True
        # A process that has just started holds less than what the statistics were made of.
        return now - self._newest.at_ms >= _RENEWED_MS and held >= made_of
