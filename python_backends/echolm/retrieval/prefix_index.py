"""The examples of all retrievers' prompts on this machine, in one file that each appends to.

All records have the same length. They are numbers of 8 bytes in native byte order: who wrote the
record, how many examples there are, and their ids in the order of the prompt. Linux appends a
write as a whole, so no lock is needed. When the file is full, the first process that notices
starts it anew, and what others have not read by then is lost; so is the whole file if a writer is
killed in the middle of a long record. Then prompts share less for a time, and nothing else happens.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from echolm.contracts import MAX_EXAMPLES

logger = logging.getLogger("echolm")

_RECORD = 2 + MAX_EXAMPLES
_RECORD_BYTES = 8 * _RECORD
_WRITE_S = 0.05  # after which a write that was seen half done has ended


class SharedPrefixIndex:
    """What this process publishes of its prompts and the others have published of theirs.

    If the file cannot be used, nothing is shared, which a warning says once.

    Args:
        path: the file, on a local file system; it is made if it is missing.
        records: number of records after which the file starts anew.
    """

    def __init__(self, path: Path, records: int = 16_384) -> None:
        self._path = path
        self._limit = records * _RECORD_BYTES
        self._writer = secrets.randbits(62)
        self._fd = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
            # What stands there already was in prompts of an engine that may have been restarted.
            self._position = self._whole_size()
        except OSError as error:
            self._give_up(error)

    def publish(self, prompts: Sequence[Sequence[int]]) -> None:
        """Let the others know which examples these prompts hold, at most MAX_EXAMPLES in each."""
        if self._fd < 0 or not prompts:
            return
        records = np.zeros((len(prompts), _RECORD), dtype=np.int64)
        for record, ids in zip(records, prompts, strict=True):
            record[0], record[1] = self._writer, len(ids)
            record[2 : 2 + len(ids)] = ids
        try:
            if os.write(self._fd, records.tobytes()) != records.nbytes:
                os.ftruncate(self._fd, 0)  # part of a record would misplace all that come after it
        except OSError as error:
            self._give_up(error)

    def poll(self) -> list[tuple[int, ...]]:
        """The examples of each prompt that the others have published since the last call."""
        if self._fd < 0:
            return []
        try:
            size = os.fstat(self._fd).st_size
            if size < self._position:
                self._position = 0
            raw = os.pread(self._fd, size - self._position, self._position)
            # The last record may be in the middle of being written.
            whole = len(raw) - len(raw) % _RECORD_BYTES
            self._position += whole
            if self._position >= self._limit:
                os.ftruncate(self._fd, 0)
        except OSError as error:
            self._give_up(error)
            return []
        records = np.frombuffer(raw[:whole], dtype=np.int64).reshape(-1, _RECORD)
        others = records[records[:, 0] != self._writer]
        return [tuple(ids[:n]) for _, n, *ids in others.tolist() if 0 < n <= MAX_EXAMPLES]

    def close(self) -> None:
        """Share nothing from now on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _whole_size(self) -> int:
        """The size, when nobody is writing; a file that ends within a record is emptied."""
        size = os.fstat(self._fd).st_size
        if size % _RECORD_BYTES:
            time.sleep(_WRITE_S)
            if os.fstat(self._fd).st_size == size:
                os.ftruncate(self._fd, 0)
                return 0
        return size - size % _RECORD_BYTES

    def _give_up(self, error: OSError) -> None:
        self.close()
        logger.warning("%s: %s; prompts of other retrievers are not seen", self._path, error)
