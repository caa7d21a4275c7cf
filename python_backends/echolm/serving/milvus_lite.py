"""The server of Milvus Lite as a process, for any number of client processes.

Opened in the usual way (``MilvusClient("file.db")``), Milvus Lite belongs to the process that
opened it. Here its server runs by itself on a Unix socket, and the file is locked as the package
locks it, so that no process can open it in the usual way meanwhile.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from echolm.errors import ConfigurationError, UnavailableError
from echolm.serving.data_dir import DataDir
from echolm.serving.guard import EXIT_LOCKED
from echolm.serving.process import (
    Command,
    GuardedProcess,
    GuardedServer,
    foreign_environment,
    package_directory,
)

_VACUUM_WAIT_S = 30.0


def find_milvus_lite() -> Path:
    """Directory of the server program and its libraries; ConfigurationError if there is none."""
    package = package_directory("milvus_lite")
    if package is None:
        raise ConfigurationError(
            f"Milvus Lite: expected the package milvus-lite in {sys.prefix}, got none; install "
            "it: `pip install milvus-lite==2.5.1`, or set retrieval.milvus_uri to a Milvus server"
        )
    directory = package / "lib"
    if not (directory / "milvus").is_file():
        raise ConfigurationError(
            f"Milvus Lite: expected the server program {directory / 'milvus'}, got none (3.x has "
            "none and is slower); install `milvus-lite==2.5.1`"
        )
    return directory


def vacuum(database: Path) -> None:
    """Erase what was deleted from a file, whether its server runs or not.

    Milvus Lite cannot compact, and what it deletes stays readable in the file. The file is an
    SQLite database, whose locks separate the server from this process; a write that the server
    attempts meanwhile fails, and the example writer repeats it.

    Raises:
        UnavailableError: the file stayed locked, or the disk is full.
    """
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_VACUUM_WAIT_S)) as db:
            db.execute("VACUUM")
    except sqlite3.Error as error:
        raise UnavailableError(
            f"Milvus Lite: expected to compact {database}, got: {error}; what was deleted can no "
            "longer be found, but may still stand in the file: try again"
        ) from error


@dataclass(frozen=True)
class MilvusLiteOptions:
    """How to run the server.

    Attributes:
        database: the file; made if missing.
        run_dir: for process files.
        keep_open: file descriptors to hold until the server has gone.
    """

    database: Path
    run_dir: Path
    log_file: Path
    keep_open: tuple[int, ...] = ()


class MilvusLite(GuardedServer):
    """One Milvus Lite server process over one file."""

    @classmethod
    def over(cls, data: DataDir) -> MilvusLite:
        """The server of a data directory, which stays in use until the server has gone."""
        log_file = data.logs / "milvus.log"
        return cls(MilvusLiteOptions(data.milvus_db, data.run, log_file, (data.lock_fd,)))

    def __init__(self, options: MilvusLiteOptions) -> None:
        self.options = options
        # Outside of the data directory, because a socket's path may have at most 107 bytes.
        self._socket = Path(tempfile.gettempdir()) / f"echolm-{secrets.token_hex(8)}.sock"
        directory = find_milvus_lite()
        database = options.database
        self._command = Command(
            name="Milvus Lite",
            program=[str(directory / "milvus"), str(database), self.uri, "ERROR"],
            environment=foreign_environment(),
            library_path=(directory,),
            log_file=options.log_file,
            pid_file=options.run_dir / "milvus.pid",
            cleanup=(str(self._socket),),
            lock=database.with_name(f".{database.name}.lock"),
            keep_open=options.keep_open,
            directory=options.run_dir,
            grace_s=5.0,
        )

    @property
    def uri(self) -> str:
        """Address for clients in any process."""
        return f"unix:{self._socket}"

    def start(self, stop: threading.Event | None = None, timeout_s: float = 30.0) -> None:
        """Start the server and wait until it takes connections, or ``stop`` is set.

        A server that has ended by itself may be started again: the address stays.

        Raises:
            ConfigurationError: another program has the file open.
            UnavailableError: the server ended or took no connection in time.
        """
        stop = stop or threading.Event()
        self.options.database.parent.mkdir(parents=True, exist_ok=True)
        self._process = GuardedProcess(self._command)
        deadline = time.monotonic() + timeout_s
        while not stop.is_set() and not self._accepts():
            status = self._process.poll()
            if status == EXIT_LOCKED:
                raise ConfigurationError(
                    f"Milvus Lite: expected {self.options.database} to be free, got it open in "
                    "another program; close that, or take another --data-dir"
                )
            if status is not None or time.monotonic() > deadline:
                got = "no answer" if status is None else f"exit status {status}"
                raise UnavailableError(
                    f"Milvus Lite: expected it to start within {timeout_s:g} s, got {got}; "
                    f"{self.log_excerpt()}"
                )
            stop.wait(0.05)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
            return True
