"""The learning log: append only, read by every process that learns.

Its oldest events may be removed once snapshots stand for them (``retention``). It is kept by
:class:`echolm.learning.sqlite_log.SQLiteEventLog` on one machine and by
:class:`echolm.learning.redis_log.RedisEventLog` on many; tests take
:class:`echolm.testing.event_log.MemoryEventLog`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from echolm.errors import InvalidRequestError, UnavailableError

_LATEST_MS = 2**53  # beyond it decays overflow

START = ""
"""The position before the first event."""


class TrimmedError(UnavailableError):
    """Events behind the position were removed: what they did is in snapshots only."""


@dataclass(frozen=True)
class Event:
    """One entry.

    Attributes:
        position: where it stands in its log; opaque, only that log can compare it.
        kind: what happened, e.g. ``rating``.
        body: JSON values, never empty; empty if the entry is damaged.
        at_ms: milliseconds since the epoch.
    """

    position: str
    kind: str
    body: Mapping[str, Any]
    at_ms: int

    @classmethod
    def decoded(cls, position: str, kind: Any, body: Any, at_ms: Any) -> Event:
        """An event from what a log holds: a kind in UTF-8 and a body in JSON.

        Any part may be damaged, even its type. An event whose body is damaged gets an empty one,
        so that a reader skips it and goes on.
        """
        kind = kind.decode("utf-8", "replace") if isinstance(kind, bytes) else ""
        try:
            text = body.decode() if isinstance(body, bytes) else "{}"
            value = json.loads(text, parse_constant=finite, parse_float=finite)
        except (ValueError, RecursionError):
            value = {}
        value = value if isinstance(value, dict) else {}
        timed = isinstance(at_ms, int) and 0 <= at_ms <= _LATEST_MS
        return cls(position, kind, value, at_ms if timed else 0)


@dataclass(frozen=True)
class SavedSnapshot:
    """A snapshot in a log without its state; one of an earlier version has ``saved_at_ms`` 0."""

    name: str
    position: str
    saved_at_ms: int


class EventLog(Protocol):
    """Append and tail, and one snapshot a name. For several threads and processes at once.

    Every reader sees the same events in the same order; none becomes visible behind one that
    was already read. Every method raises UnavailableError if the log cannot be reached.
    """

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        """Store an event for good and return its position.

        UnavailableError leaves open whether it was stored, so what is sent again must count once.
        """

    def read(self, after: str, limit: int) -> list[Event]:
        """Up to ``limit`` events behind the position ``after``, in order.

        Raises:
            TrimmedError: some of them are gone. From ``START`` on, those that are left are read.
        """

    def trim(self, before_ms: int, taken_in: Sequence[str]) -> int:
        """Remove the log's oldest events for good; gives how many.

        Args:
            before_ms: events from then on stay, and so do all events behind them.
            taken_in: positions, at least one; events behind any of them stay.
        """

    def save_snapshot(self, name: str, position: str, state: bytes, replaces: str = START) -> bool:
        """Keep what was learnt up to and with ``position``; False if another process was faster.

        Args:
            replaces: the position of the snapshot of this name that is replaced, as the caller
                last saw it; ``START`` if there is none. A slow process must not put an older
                state over a newer one, behind which events may be gone already.
        """

    def snapshots(self) -> list[SavedSnapshot]:
        """All snapshots, in any order."""

    def drop_snapshot(self, name: str) -> None:
        """Remove a snapshot; an unknown name is ignored."""

    def load_snapshot(self, name: str) -> tuple[str, bytes] | None:
        """Position and state that were saved last under the name, if any."""

    def lease(self, name: str, owner: str, seconds: float) -> bool:
        """Whether ``owner`` alone may do the work ``name`` for so many seconds from now on.

        The owner may ask again before the time is over, to go on; others are refused until then.
        """

    def close(self) -> None:
        """Give connections and files back."""


def encode_body(body: Mapping[str, Any]) -> str:
    """The body as JSON; InvalidRequestError if a number in it is not finite."""
    try:
        return json.dumps(body, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise InvalidRequestError.of("event", "finite numbers", "NaN or infinity") from error


def finite(text: str) -> float:
    """A number in JSON; ValueError if it is not finite."""
    number = float(text)
    if not math.isfinite(number):  # 1e999 as well
        raise ValueError(f"expected finite numbers, got {text}")
    return number
