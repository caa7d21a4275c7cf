"""Runs one program so that nothing of it outlives the process that asked for it.

Triton starts a stub process per model instance, and a parent killed with SIGKILL can clean up
nothing. This small process sits between::

    echolm serve ── guard ── tritonserver ── stub, stub, …

It passes SIGTERM on, and acts as if it had got one when its parent dies. When the program has
ended it kills what the program left behind (orphans are re-parented to the guard, a "child
subreaper") and removes the files named by ``--cleanup``. Should the guard itself be killed, the
kernel kills the program (``PR_SET_PDEATHSIG``), and stubs end when Triton does.

Run as a script with ``python -I -S``: only with the standard library it starts in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

EXIT_LOCKED = 75
"""The guard's exit status when ``--lock`` is held by another process (EX_TEMPFAIL)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})
_POLL_S = 0.25
_ORPHAN_GRACE_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program to its end; returns its exit status (128 + n if signal n ended it)."""
    parser = argparse.ArgumentParser(description="run a program that must not outlive its parent")
    parser.add_argument("--parent", type=int, required=True, help="stop when this is not my parent")
    parser.add_argument("--grace", type=float, required=True, help="from SIGTERM to SIGKILL, in s")
    parser.add_argument("--pid-file", type=Path, required=True, help="gets the program's id")
    parser.add_argument("--lock", type=Path, help="POSIX lock to hold while the program runs")
    parser.add_argument("--library-path", required=True, help="the program's LD_LIBRARY_PATH")
    parser.add_argument("--cleanup", action="append", default=[], help="files to remove (pattern)")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="-- program and its arguments")
    args = parser.parse_args(argv)
    program = args.program[1:] if args.program[:1] == ["--"] else args.program

    # From here on signals wait until sigtimedwait() takes them: no handlers, no races.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    if args.lock is not None:
        lock = open(args.lock, "a")  # noqa: SIM115 - held to the end
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"{args.lock} is held by another process", file=sys.stderr)
            return EXIT_LOCKED

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    try:
        # Kept: a Popen that is dropped may collect the exit status before _reap() does.
        started = subprocess.Popen(
            program,
            preexec_fn=in_child,  # Safe: this process has one thread.
            stdin=subprocess.DEVNULL,
            # Only here: the programs' private libraries can be too old for this Python.
            env={**os.environ, "LD_LIBRARY_PATH": args.library_path},
        )
    except OSError as error:
        print(f"cannot run {program[0]}: {error.strerror}", file=sys.stderr)
        return 126
    args.pid_file.write_text(f"{started.pid}\n")
    try:
        status = _watch(started.pid, args.parent, args.grace)
        _kill_orphans()
    finally:
        for pattern in args.cleanup:
            remove(pattern)
        args.pid_file.unlink(missing_ok=True)
    return status


def remove(pattern: str) -> None:
    """Remove the files that a pattern names; those that are gone already do not matter."""
    for name in glob.glob(pattern):
        with contextlib.suppress(OSError):
            os.unlink(name)


def _watch(child: int, parent: int, grace_s: float) -> int:
    deadline = float("inf")
    terminating = False
    while True:
        if (status := _reap(child)) is not None:
            return status
        now = time.monotonic()
        taken = signal.sigtimedwait(_WATCHED, min(_POLL_S, max(deadline - now, 0.01)))
        requested = taken is not None and taken.si_signo != signal.SIGCHLD
        if not terminating and (requested or os.getppid() != parent):
            terminating = True
            deadline = time.monotonic() + grace_s
            os.kill(child, signal.SIGTERM)
        elif terminating and (requested or time.monotonic() >= deadline):
            deadline = float("inf")
            os.kill(child, signal.SIGKILL)


def _reap(child: int) -> int | None:
    """Collect the dead; the exit status of ``child`` if it is among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _kill_orphans() -> None:
    """End what the program left: a stub normally goes by itself when Triton has gone."""
    deadline = time.monotonic() + _ORPHAN_GRACE_S
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid:
            continue
        if time.monotonic() >= deadline:
            # Again and again: the children of those killed are re-parented to us.
            for orphan in _children():
                os.kill(orphan, signal.SIGKILL)
        time.sleep(0.02)


def _children() -> list[int]:
    children = []
    for file in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            # "pid (name) state ppid …": the name may hold blanks and brackets.
            parent = Path(file).read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                children.append(int(file.split("/")[2]))
    return children


if __name__ == "__main__":
    sys.exit(main())
