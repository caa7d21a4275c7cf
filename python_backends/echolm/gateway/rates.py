"""What a key has used of its limits, shared by the workers of a machine through an SQLite file.

Requests and tokens a minute are limited by the generic cell rate algorithm (ITU-T I.371): of each
limit only the time is kept at which all that was used would have been due. Tokens are taken when a
request comes, as many as it may need at most, and given back when its answer is known.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from echolm.gateway.errors import too_many
from echolm.gateway.keys import Key
from echolm.sqlite import SQLiteFile

_MINUTE_S, _DAY_S = 60.0, 86_400.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Left:
    """What is left of a limit for each minute; as OpenAI's ``x-ratelimit-`` headers say it.

    Attributes:
        reset_s: seconds until nothing of it is used.
    """

    name: str
    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> dict[str, str]:
        return {
            f"x-ratelimit-limit-{self.name}": str(self.limit),
            f"x-ratelimit-remaining-{self.name}": str(self.remaining),
            f"x-ratelimit-reset-{self.name}": f"{self.reset_s:.3f}s",
        }


def prepare(db: sqlite3.Connection) -> None:
    """Create the table."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS usage (key TEXT PRIMARY KEY, requests_due REAL NOT NULL,"
        " tokens_due REAL NOT NULL, day INTEGER NOT NULL, day_tokens INTEGER NOT NULL)"
    )


class Rates:
    """The limits of all keys.

    Args:
        clock: seconds since the epoch, the same for all processes.
    """

    def __init__(self, file: SQLiteFile, clock: Callable[[], float]) -> None:
        self._file, self._clock = file, clock
        # Waits for the disk and for other processes are not the event loop's.
        self._thread = ThreadPoolExecutor(1, "rates")

    async def take(self, key: Key, tokens: int) -> list[Left]:
        """Count a request with so many tokens.

        Raises:
            ApiError: 429; nothing was counted.
            UnavailableError: the file cannot be used.
        """
        return await self._run(lambda: self._take(key, tokens))

    async def correct(self, key: Key, tokens: int) -> None:
        """Count so many tokens more, or fewer if negative, than were taken."""
        if tokens and (key.tokens_per_minute or key.tokens_per_day):
            await self._run(lambda: self._correct(key, tokens))

    def close(self) -> None:
        self._thread.shutdown()

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _take(self, key: Key, tokens: int) -> list[Left]:
        now = self._clock()
        day = int(now // _DAY_S)
        with self._file.transaction() as db:
            requests_due, tokens_due, day_tokens = self._row(db, key, now, day)
            left = []
            if key.requests_per_minute is not None:
                limit = key.requests_per_minute
                requests_due, state = _taken("requests", limit, 1, requests_due, now)
                left.append(state)
            if key.tokens_per_minute is not None:
                limit = key.tokens_per_minute
                tokens_due, state = _taken("tokens", limit, tokens, tokens_due, now)
                left.append(state)
            if key.tokens_per_day is not None and day_tokens + tokens > key.tokens_per_day:
                message = (
                    f"tokens: expected at most {key.tokens_per_day} a day (UTC) for this key, got "
                    f"{day_tokens} used and up to {tokens} asked for"
                )
                wait_s = (day + 1) * _DAY_S - now
                raise too_many(message, "insufficient_quota", "insufficient_quota", wait_s)
            self._store(db, key, requests_due, tokens_due, day, day_tokens + tokens)
        return left

    def _correct(self, key: Key, tokens: int) -> None:
        now = self._clock()
        day = int(now // _DAY_S)
        with self._file.transaction() as db:
            requests_due, tokens_due, day_tokens = self._row(db, key, now, day)
            if key.tokens_per_minute is not None:
                tokens_due = max(now, tokens_due + tokens * _MINUTE_S / key.tokens_per_minute)
            self._store(db, key, requests_due, tokens_due, day, max(0, day_tokens + tokens))

    def _row(
        self, db: sqlite3.Connection, key: Key, now: float, day: int
    ) -> tuple[float, float, int]:
        """When requests and tokens are due, and the day's tokens; locks the file."""
        db.execute("BEGIN IMMEDIATE")
        columns = "requests_due, tokens_due, day, day_tokens"
        row = db.execute(f"SELECT {columns} FROM usage WHERE key = ?", (key.id,)).fetchone()
        requests_due, tokens_due, stored_day, day_tokens = row or (now, now, day, 0)
        # No limit is further away than two minutes, unless the clock was set back.
        most = now + 2 * _MINUTE_S
        requests_due, tokens_due = (min(max(now, due), most) for due in (requests_due, tokens_due))
        return requests_due, tokens_due, day_tokens if stored_day == day else 0

    def _store(
        self,
        db: sqlite3.Connection,
        key: Key,
        requests_due: float,
        tokens_due: float,
        day: int,
        day_tokens: int,
    ) -> None:
        row = (key.id, requests_due, tokens_due, day, day_tokens)
        db.execute("INSERT OR REPLACE INTO usage VALUES (?, ?, ?, ?, ?)", row)


def _taken(name: str, limit: int, amount: int, due: float, now: float) -> tuple[float, Left]:
    """When what was used is due with so much more, and what is left; ApiError if it is too much."""
    each_s = _MINUTE_S / limit
    new = due + amount * each_s
    over_s = new - now - _MINUTE_S
    if over_s > 1e-6:
        fits = amount <= limit
        got = f"more; come again in {over_s:.1f} s" if fits else f"up to {amount} in one request"
        message = f"{name}: expected at most {limit} a minute for this key, got {got}"
        raise too_many(message, name, "rate_limit_exceeded", over_s if fits else _MINUTE_S)
    return new, Left(name, limit, int(-over_s / each_s + 1e-6), new - now)
