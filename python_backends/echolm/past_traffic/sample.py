"""A random sample of a log's requests, the same one each time."""

from __future__ import annotations

import heapq

from echolm.past_traffic.record import Logged


class HashSample:
    """Keeps the requests with the smallest hashes: a uniform sample of the different requests.

    It depends on nothing but the requests, so a log that is read again, or has grown, gives what
    was sampled before (and perhaps paid for) again. Any first part of it is a sample, too.

    Args:
        size: most requests that are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[int, int]] = []  # negative hash; the largest hash comes first
        self._kept: dict[int, Logged] = {}

    def offer(self, logged: Logged) -> None:
        """Keep an interaction, perhaps; of one request the first."""
        key = logged.request_hash
        if key in self._kept or not self._size:
            return
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, (-key, key))
        elif key < self._heap[0][1]:
            del self._kept[heapq.heapreplace(self._heap, (-key, key))[1]]
        else:
            return
        self._kept[key] = logged

    def all(self) -> list[Logged]:
        """What is kept, by hash."""
        return [self._kept[key] for key in sorted(self._kept)]
