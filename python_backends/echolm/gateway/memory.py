"""Feedback tokens by the id of a response, for the workers of a machine.

The id stands in each chunk of a stream, and a token, which is known at the end, is some hundred
characters long. So ids are random, and the newest tokens are kept in an SQLite file.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from echolm.errors import UnavailableError
from echolm.sqlite import SQLiteFile

logger = logging.getLogger("echolm")

_T = TypeVar("_T")

_WRITE_S = 0.02
_RETRY_S = 0.2
_PRUNE_EVERY = 1_000


def prepare(db: sqlite3.Connection) -> None:
    """Create the table."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS responses (number INTEGER PRIMARY KEY AUTOINCREMENT,"
        " id TEXT NOT NULL UNIQUE, token TEXT NOT NULL, tenant TEXT NOT NULL)"
    )


class ResponseMemory:
    """The tokens of the newest responses.

    Args:
        most: how many are kept; 0: none.
    """

    def __init__(self, file: SQLiteFile, most: int) -> None:
        self._file, self._most = file, most
        self._waiting: dict[str, tuple[str, str]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "memory")
        self._since_pruned = 0

    def remember(self, id: str, token: str, tenant: str) -> None:
        """Keep the token of an answer; it is written a moment later, with others."""
        if self._most and token:
            self._waiting[id] = (token, tenant)
            if self._writing is None:
                self._writing = asyncio.ensure_future(self._write_soon())

    async def token(self, id: str) -> tuple[str, str] | None:
        """Token and tenant of an answer; None if it is not known (any more).

        Raises:
            UnavailableError: the file cannot be used.
        """
        for wait_s in (0.0, _RETRY_S):  # another worker may be about to write it
            await asyncio.sleep(wait_s)
            if found := self._waiting.get(id) or await self._run(self._read, id):
                return found
        return None

    async def close(self) -> None:
        """Write what waits."""
        while self._writing is not None:
            await asyncio.wait({self._writing})
        self._thread.shutdown()

    async def _run(self, work: Callable[..., _T], *args: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _read(self, id: str) -> tuple[str, str] | None:
        rows = self._file.rows("SELECT token, tenant FROM responses WHERE id = ?", (id,))
        return (rows[0][0], rows[0][1]) if rows else None

    async def _write_soon(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(_WRITE_S)
                written = dict(self._waiting)
                try:
                    await self._run(self._write, written)
                except UnavailableError as error:
                    logger.error("%s; %d responses cannot be rated by id", error, len(written))
                for id in written:
                    del self._waiting[id]
        finally:
            self._writing = None

    def _write(self, written: dict[str, tuple[str, str]]) -> None:
        rows = [(id, token, tenant) for id, (token, tenant) in written.items()]
        self._since_pruned += len(rows)
        with self._file.transaction() as db:
            insert = "INSERT OR REPLACE INTO responses (id, token, tenant) VALUES (?, ?, ?)"
            db.executemany(insert, rows)
            if self._since_pruned >= min(_PRUNE_EVERY, self._most):
                self._since_pruned = 0
                newest = "(SELECT MAX(number) FROM responses)"
                db.execute(f"DELETE FROM responses WHERE number <= {newest} - ?", (self._most,))
