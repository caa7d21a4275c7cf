"""The load of all router processes of a machine, on one small shared-memory file.

Layout, in units of 8 bytes, native byte order::

    header   16 bytes mark and version, 32 bytes SHA-256 of the layout, 16 bytes unused
    row 0    sequence, then for each LLM: in flight (i64), average (f64), at (f64); padding
    row 1    …

A row belongs to the process that holds an exclusive lock on its bytes; only that process writes it.
The kernel takes the lock back when the process ends, however it ends, so the row of a process that
was killed counts no longer, and another one may take it. Rows are padded to whole cache lines.

The locks are open-file-description locks (Linux 3.15): unlike classic POSIX locks they do not
vanish when another descriptor of the file is closed, and two tables in one process respect each
other. The file must be on a local file system, since memory is not shared across machines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from echolm.load.tracker import Count, LoadTracker, ServingLoad

logger = logging.getLogger("echolm")


_MARK = b"EchoLM load 1\0\0\0"
_HEADER_BYTES = 64
_CACHE_LINE = 64
_LIVENESS_S = 0.5
_REJOIN_S = 10.0
_HEADER_WAIT_S = 1.0
_READ_ATTEMPTS = 4
_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, process


class _UnusableError(Exception):
    """The table's file cannot be used now; the message says why."""


class _File:
    """An open file of which this process owns one row.

    Raises:
        OSError: the file cannot be made, read or written.
        _UnusableError: all rows are taken, or the file is in use for other LLMs.
    """

    def __init__(self, path: Path, llms: Sequence[str], rows: int) -> None:
        self._num_llms, self._rows = len(llms), rows
        raw = 8 * (1 + 3 * self._num_llms)
        self._row_bytes = -(-raw // _CACHE_LINE) * _CACHE_LINE
        self._size = _HEADER_BYTES + rows * self._row_bytes
        layout = json.dumps([list(llms), rows, self._row_bytes]).encode()
        self._header = _MARK + hashlib.sha256(layout).digest()
        self._path = path
        self._last: dict[int, list[Count]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _HEADER_WAIT_S
        while not self._open(deadline):
            if time.monotonic() > deadline:
                raise _UnusableError("it is replaced again and again")

    def _open(self, deadline: float) -> bool:
        """Open the file and take a row; False if the file was replaced meanwhile."""
        with ExitStack() as on_failure:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            on_failure.callback(os.close, self._fd)
            while not self._lock(fcntl.F_WRLCK, 0, _HEADER_BYTES):
                if time.monotonic() > deadline:
                    raise _UnusableError("another process does not finish opening it")
                time.sleep(0.005)
            if not (self.is_current and self._valid()):
                return False
            self._row = self._take_row()
            self._map = mmap.mmap(self._fd, self._size)
            on_failure.pop_all()
        self._bytes = memoryview(self._map)
        # Aligned elements of 8 bytes: each is stored in one piece.
        self._ints, self._floats = self._bytes.cast("q"), self._bytes.cast("d")
        start = self._base(self._row)
        for index in range(start, start + self._row_bytes // 8):
            self._ints[index] = 0  # clears what a dead owner has left
        self._lock(fcntl.F_UNLCK, 0, _HEADER_BYTES)
        return True

    def _valid(self) -> bool:
        """Whether the file can be used; a damaged one, or one of another layout, is removed."""
        size = os.fstat(self._fd).st_size
        if size >= self._size and os.pread(self._fd, len(self._header), 0) == self._header:
            return True
        if size == 0:
            # Blocks are allocated now: writing into a hole of a mapped file crashes the process
            # (SIGBUS) when the disk is full.
            os.posix_fallocate(self._fd, 0, self._size)
            os.pwrite(self._fd, self._header, 0)
            return True
        if self._locked_elsewhere(_HEADER_BYTES, 0):
            raise _UnusableError("routers of another configuration are using it")
        # Never rewritten in place: some process may still have it mapped.
        os.unlink(self._path)
        return False

    def _take_row(self) -> int:
        for row in range(self._rows):
            if self._lock(fcntl.F_WRLCK, self._offset(row), self._row_bytes):
                return row
        raise _UnusableError(f"all {self._rows} rows are taken")

    @property
    def is_current(self) -> bool:
        """Whether the path still names this file."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except OSError:
            return False

    def publish(self, llm: int, count: Count) -> None:
        """Write the count of the LLM with that index. Not for several threads at once."""
        start = self._base(self._row)
        index = start + 1 + 3 * llm
        # Odd while a write is going on, so that nobody takes halves of two counts for one.
        self._ints[start] += 1
        self._ints[index] = count.in_flight
        self._floats[index + 1] = count.average
        self._floats[index + 2] = count.at
        self._ints[start] += 1

    def read(self, row: int) -> list[Count]:
        """The counts that a row's owner has published last, by index of the LLM."""
        start = self._base(row)
        place = slice(start + 1, start + 1 + 3 * self._num_llms)
        for _ in range(_READ_ATTEMPTS):
            sequence = self._ints[start]
            ints, floats = self._ints[place].tolist(), self._floats[place].tolist()
            if sequence % 2 == 0 and sequence == self._ints[start]:
                self._last[row] = list(map(Count, ints[::3], floats[1::3], floats[2::3]))
                break
        # If no attempt succeeded, the owner was stopped inside a write, and the counts that were
        # read last are near enough.
        return self._last.get(row, [])

    def live_rows(self) -> list[int]:
        """The rows that other processes own."""
        return [
            row
            for row in range(self._rows)
            # A row that was never written needs no system call.
            if row != self._row
            and self._ints[self._base(row)]
            and self._locked_elsewhere(self._offset(row), self._row_bytes)
        ]

    def close(self) -> None:
        """Give the row back."""
        # The mapping keeps the open file, and so the lock, until it is gone: unlock first.
        self._lock(fcntl.F_UNLCK, self._offset(self._row), self._row_bytes)
        for view in (self._ints, self._floats, self._bytes):
            view.release()
        self._map.close()
        os.close(self._fd)

    def _offset(self, row: int) -> int:
        return _HEADER_BYTES + row * self._row_bytes

    def _base(self, row: int) -> int:
        return self._offset(row) // 8

    def _lock(self, kind: int, start: int, length: int) -> bool:
        """Lock or unlock bytes; False if another process holds them."""
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES
            return False
        return True

    def _locked_elsewhere(self, start: int, length: int) -> bool:
        request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, request)
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


class LoadTable(ServingLoad):
    """The load of all routers on this machine.

    It is the sum of this process' own counts and of the rows of all other live processes. A
    process that dies counts for half a second more. If the file cannot be used (no permission, no
    space, no free row, other LLMs), the load is this process' own, and joining is tried again every
    ten seconds. Several threads may use a table.

    Args:
        llms: names of all LLMs, in the same order in every process.
        half_life_s: seconds after which an old load counts half.
        clock: gives seconds, the same for all processes of the machine.
        rows: most processes; the same number in every process.

    Attributes:
        local: the load that this process causes.
        degraded: why other routers' load is not seen; empty if it is seen.
    """

    def __init__(
        self,
        path: Path,
        llms: Sequence[str],
        half_life_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        rows: int = 64,
    ) -> None:
        self.local = LoadTracker(half_life_s, clock)
        self._path = path
        self._index = {llm: index for index, llm in enumerate(llms)}
        self._half_life_s = half_life_s
        self._clock = clock
        self._rows = rows
        self._lock = threading.Lock()
        self._file: _File | None = None
        self._live: list[int] = []
        self._checked_at = self._joined_at = -math.inf
        self.degraded = self._reported = ""
        with self._lock:
            self._refresh()

    def change(self, llm: str, step: int) -> Count:
        with self._lock:
            count = self.local.change(llm, step)
            if self._file is not None:
                self._file.publish(self._index[llm], count)
            return count

    def in_flight(self, llm: str) -> int:
        return self.local.in_flight(llm) + sum(c.in_flight for c in self._others(llm))

    def load(self, llm: str) -> float:
        now = self._clock()
        others = sum(c.smoothed(now, self._half_life_s) for c in self._others(llm))
        return self.local.load(llm) + others

    def close(self) -> None:
        """Give the row back; the load is this process' own from now on."""
        with self._lock:
            self._leave("closed")
            self._joined_at = math.inf

    def _others(self, llm: str) -> list[Count]:
        index = self._index[llm]
        with self._lock:
            self._refresh()
            if self._file is None:
                return []
            rows = [self._file.read(row) for row in self._live]
        return [counts[index] for counts in rows if counts]

    def _refresh(self) -> None:
        """See which rows are live, and join if no file is open or it was replaced."""
        now = self._clock()
        if now - self._joined_at >= _REJOIN_S:
            self._joined_at = now
            if self._file is None or not self._file.is_current:
                self._join()
        if self._file is not None and now - self._checked_at >= _LIVENESS_S:
            self._checked_at = now
            self._live = self._file.live_rows()

    def _join(self) -> None:
        self._leave("being opened again")
        try:
            self._file = _File(self._path, list(self._index), self._rows)
        except (OSError, _UnusableError) as error:
            reason = str(error)
            # The warning comes once, and again only for another reason.
            if reason != self._reported:
                logger.warning(
                    "load table %s: %s; this router sees only its own load", self._path, reason
                )
            self._reported = self.degraded = reason
            return
        if self._reported:
            logger.info("load table %s: joined", self._path)
        self._reported = self.degraded = ""
        for llm, index in self._index.items():
            self._file.publish(index, self.local.count(llm))
        self._checked_at = -math.inf

    def _leave(self, reason: str) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._live, self.degraded = None, [], reason
