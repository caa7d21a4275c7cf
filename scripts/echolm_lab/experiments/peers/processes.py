"""Servers that the bench starts, and what their processes cost."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from echolm.serving.process import Command, GuardedProcess, foreign_environment

from echolm_lab.experiments.peers.errors import PeerUnavailableError

_POLL_S = 0.1


@dataclass(frozen=True)
class ProcessTree:
    """A process and all that descend from it.

    Attributes:
        without: of those, the ones whose command line contains one of these do not count.
    """

    root: int
    without: tuple[str, ...] = ()

    def processes(self) -> list[psutil.Process]:
        """Those that count and live now."""
        try:
            root = psutil.Process(self.root)
            everyone = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        return [process for process in everyone if self._counts(process)]

    def _counts(self, process: psutil.Process) -> bool:
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            return False
        return not any(part in line for part in self.without)

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system, of those that live now."""
        seconds = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds

    def memory_mib(self) -> float:
        """Resident memory; a page that several share counts as a share in each."""
        mib = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                mib += process.memory_full_info().pss / 2**20
        return mib


def cpu_s(parts: Mapping[str, ProcessTree]) -> dict[str, float]:
    """CPU seconds so far, by part."""
    return {name: tree.cpu_s() for name, tree in parts.items()}


@contextlib.contextmanager
def server(
    name: str,
    program: Sequence[str],
    work: Path,
    *,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    library_path: Sequence[Path] = (),
    ready_s: float = 600.0,
) -> Iterator[ProcessTree]:
    """A server of another program, as long as the context lasts; its log is ``NAME.log``.

    Args:
        ready: whether it is up; asked again and again.
        environment: added to this process's own.

    Raises:
        PeerUnavailableError: it ended by itself or did not answer in ``ready_s``.
    """
    started = GuardedProcess(
        Command(
            name=name,
            program=program,
            environment={**foreign_environment(), **(environment or {})},
            library_path=library_path,
            log_file=work / f"{name}.log",
            pid_file=work / f"{name}.pid",
        )
    )
    try:
        deadline = time.monotonic() + ready_s
        while not ready():
            if (status := started.poll()) is not None or time.monotonic() > deadline:
                got = "none" if status is None else f"its end with status {status}"
                raise PeerUnavailableError(
                    f"{name}: expected an answer in {ready_s:.0f} s, got {got}; last lines of its "
                    f"log:\n{started.log_tail()}"
                )
            time.sleep(_POLL_S)
        yield ProcessTree(started.pid() or 0)
    finally:
        started.stop()


def answers(port: int, path: str) -> bool:
    """Whether a GET on 127.0.0.1 is answered with status 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
