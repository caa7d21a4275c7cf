"""Programs of other projects that EchoLM starts, watches and stops, through ``guard``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from echolm import private
from echolm.serving import guard
from echolm.settings import ENV_PREFIX


@dataclass(frozen=True)
class Command:
    """What to run, and what must be gone when it has ended.

    Attributes:
        name: what messages call it.
        program: the program and its arguments.
        environment: its whole environment, but for LD_LIBRARY_PATH.
        library_path: where it finds shared libraries first; this process's LD_LIBRARY_PATH
            follows.
        log_file: gets its standard output and error; the last run's log moves to ``.1``.
        pid_file: holds the program's process id while it runs.
        cleanup: patterns of files that it may leave behind.
        lock: file whose POSIX lock is held while it runs.
        keep_open: file descriptors that the guard keeps open (locks of the caller).
        directory: where it runs; None: where this process does.
        grace_s: from SIGTERM to SIGKILL.
        echo: stream that gets a copy of the log.
    """

    name: str
    program: Sequence[str]
    environment: Mapping[str, str]
    log_file: Path
    pid_file: Path
    library_path: Sequence[Path] = ()
    cleanup: Sequence[str] = ()
    lock: Path | None = None
    keep_open: Sequence[int] = ()
    directory: Path | None = None
    grace_s: float = 15.0
    echo: TextIO | None = None


class GuardedProcess:
    """One run of a :class:`Command`; it cannot outlive this Python process."""

    def __init__(self, command: Command) -> None:
        self.command = command
        command.log_file.parent.mkdir(parents=True, exist_ok=True)
        command.pid_file.parent.mkdir(parents=True, exist_ok=True)
        command.pid_file.unlink(missing_ok=True)
        if command.log_file.exists():
            command.log_file.replace(command.log_file.with_name(command.log_file.name + ".1"))
        libraries = [*map(str, command.library_path), os.environ.get("LD_LIBRARY_PATH", "")]
        options = [
            f"--parent={os.getpid()}",
            f"--grace={command.grace_s}",
            f"--pid-file={command.pid_file}",
            f"--library-path={os.pathsep.join(filter(None, libraries))}",
            *(f"--cleanup={pattern}" for pattern in command.cleanup),
        ]
        if command.lock is not None:
            options.append(f"--lock={command.lock}")
        with open(command.log_file, "ab", opener=private.opener) as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, *options, "--", *command.program],
                env=dict(command.environment),
                cwd=command.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(command.keep_open),
                # In a session of its own Ctrl-C does not reach it, so that we can stop in order.
                start_new_session=True,
                umask=private.UMASK,  # whatever it writes, sockets and shared memory included
            )
        if command.echo is not None:
            threading.Thread(target=self._follow, args=(command.echo,), daemon=True).start()

    @property
    def guard_pid(self) -> int:
        """Process id of the guard; also the id of the process group."""
        return self._guard.pid

    def pid(self, timeout_s: float = 5.0) -> int | None:
        """Process id of the program itself; None if it did not start."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return int(self.command.pid_file.read_text())
            except (OSError, ValueError):
                if self.poll() is not None or time.monotonic() >= deadline:
                    return None
                time.sleep(0.01)

    def poll(self) -> int | None:
        """The exit status, once the program and all it started are gone; until then None."""
        return self._guard.poll()

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the log."""
        try:
            with open(self.command.log_file, encoding="utf-8", errors="replace") as log:
                return "".join(deque(log, maxlen=lines)).rstrip()
        except OSError:
            return ""

    def stop(self) -> int:
        """SIGTERM, SIGKILL after the grace time; returns the exit status. May be repeated."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._guard.send_signal(signal.SIGTERM)
            try:
                # After the grace time the guard needs a moment to kill and to clean up.
                self._guard.wait(self.command.grace_s + 10)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._guard.wait()

    def kill(self) -> None:
        """End everything at once, without waiting for it.

        May be called from a signal handler while :meth:`stop` waits, so it must not take the
        lock that waiting for a process holds.
        """
        if self._guard.returncode is None:
            # Guard, program and what that started are one process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._guard.pid, signal.SIGKILL)
        for pattern in self.command.cleanup:
            guard.remove(pattern)

    def _follow(self, stream: TextIO) -> None:
        with open(self.command.log_file, encoding="utf-8", errors="replace") as log:
            while True:
                ended = self.poll() is not None
                stream.write(log.read())
                stream.flush()
                if ended:
                    return
                time.sleep(0.2)


class GuardedServer:
    """A server of another project, each of whose starts is a :class:`GuardedProcess`."""

    _process: GuardedProcess | None = None

    @property
    def process(self) -> GuardedProcess:
        """The running (or ended) process; RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError(f"{type(self).__name__}.start() has not been called")
        return self._process

    def poll(self) -> int | None:
        """Exit status of a server that has ended, else None."""
        return self.process.poll()

    def stop(self) -> None:
        """Stop the server; may be repeated."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """As :meth:`stop`, at once: requests in flight are lost."""
        if self._process is not None:
            self._process.kill()

    def log_excerpt(self) -> str:
        """The last lines of the log, for a message."""
        tail = self.process.log_tail() or "(empty)"
        return f"last lines of {self.process.command.log_file}:\n{tail}"


def foreign_environment() -> dict[str, str]:
    """This process's environment without what is EchoLM's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


def package_directory(name: str) -> Path | None:
    """Directory of an installed package, which is not imported; None if there is none."""
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None
