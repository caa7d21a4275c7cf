from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echolm.serving.guard import EXIT_LOCKED
from echolm.serving.process import Command, GuardedProcess


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Command]:
    def make(script: str, **options: Any) -> Command:
        return Command(
            name="test",
            program=["/bin/sh", "-c", script],
            environment=dict(os.environ),
            log_file=tmp_path / "logs" / "test.log",
            pid_file=tmp_path / "run" / "test.pid",
            **options,
        )

    return make


def wait(process: GuardedProcess, timeout: float = 10) -> int:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        status = process.poll()
        if status is not None:
            return status
        time.sleep(0.02)
    raise AssertionError("still running")


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def eventually(holds: Callable[[], bool], timeout: float = 10) -> bool:
    deadline = time.monotonic() + timeout
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_exit_status_and_log_are_reported(command: Callable[..., Command]) -> None:
    process = GuardedProcess(command("echo out; echo err >&2; exit 7"))
    assert wait(process) == 7
    assert process.log_tail() == "out\nerr"
    assert process.log_tail(lines=1) == "err"


def test_death_by_signal_is_reported_as_shells_do(command: Callable[..., Command]) -> None:
    assert wait(GuardedProcess(command("kill -9 $$"))) == 128 + signal.SIGKILL


def test_program_that_does_not_exist_is_reported(command: Callable[..., Command]) -> None:
    process = GuardedProcess(replace(command(""), program=["/no/such/program"]))
    assert wait(process) == 126
    assert "/no/such/program" in process.log_tail()


def test_log_of_the_run_before_is_kept(command: Callable[..., Command]) -> None:
    wait(GuardedProcess(command("echo first")))
    process = GuardedProcess(command("echo second"))
    wait(process)
    assert process.log_tail() == "second"
    log = process.command.log_file
    assert log.with_name(log.name + ".1").read_text() == "first\n"


def test_log_is_echoed(command: Callable[..., Command]) -> None:
    echo = io.StringIO()
    wait(GuardedProcess(command("echo hello", echo=echo)))
    assert eventually(lambda: echo.getvalue() == "hello\n")


def test_stop_terminates(command: Callable[..., Command]) -> None:
    process = GuardedProcess(
        command("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    )
    assert eventually(lambda: process.log_tail() == "up")
    assert process.stop() == 0
    assert process.log_tail() == "up\nbye"
    assert process.stop() == 0


def test_stop_kills_after_the_grace_time(command: Callable[..., Command]) -> None:
    process = GuardedProcess(
        command("trap '' TERM; echo up; while :; do sleep 0.05; done", grace_s=0.3)
    )
    assert eventually(lambda: process.log_tail() == "up")
    started = time.monotonic()
    assert process.stop() == 128 + signal.SIGKILL
    assert time.monotonic() - started < 5


def test_children_that_the_program_leaves_are_killed(command: Callable[..., Command]) -> None:
    # In a session of its own, and with SIGTERM ignored: neither the group nor a plea reaches it.
    process = GuardedProcess(
        command("setsid sh -c 'trap \"\" TERM; echo $$; sleep 60' & sleep 0.3")
    )
    wait(process)
    assert not alive(int(process.log_tail()))


def test_kill_ends_everything_at_once(command: Callable[..., Command], tmp_path: Path) -> None:
    left = tmp_path / "left.1"
    left.touch()
    process = GuardedProcess(
        command("sleep 60 & echo $!; wait", cleanup=(str(tmp_path / "left.*"),))
    )
    assert eventually(lambda: process.log_tail() != "")
    child = int(process.log_tail())
    process.kill()
    assert eventually(lambda: not alive(child), timeout=1)
    assert not left.exists()
    assert process.stop() != 0


def test_files_are_cleaned_up_when_the_program_ends(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    names = [tmp_path / name for name in ("shm-1", "shm-2", "other")]
    for path in names:
        path.touch()
    process = GuardedProcess(command("exit 0", cleanup=(str(tmp_path / "shm-*"),)))
    wait(process)
    assert [path.exists() for path in names] == [False, False, True]
    assert not process.command.pid_file.exists()


def test_pid_is_that_of_the_program(command: Callable[..., Command]) -> None:
    process = GuardedProcess(command("echo $$; exec sleep 60"))
    assert eventually(lambda: process.log_tail() != "")
    assert process.pid() == int(process.log_tail())
    process.stop()


def test_lock_is_held_while_the_program_runs(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    holder = GuardedProcess(command("sleep 60", lock=tmp_path / "lock"))
    assert holder.pid() is not None
    late = replace(
        command("exit 0", lock=tmp_path / "lock"),
        log_file=tmp_path / "late.log",
        pid_file=tmp_path / "late.pid",
    )
    assert wait(GuardedProcess(late)) == EXIT_LOCKED
    holder.stop()
    assert wait(GuardedProcess(late)) == 0


def test_library_path_is_only_for_the_program(command: Callable[..., Command]) -> None:
    process = GuardedProcess(
        command('echo "$LD_LIBRARY_PATH"', library_path=(Path("/a"), Path("/b")))
    )
    wait(process)
    assert process.log_tail().startswith("/a:/b")


@pytest.mark.parametrize("victim", ["parent", "guard"])
def test_nothing_survives_a_killed_parent_or_guard(tmp_path: Path, victim: str) -> None:
    script = f"""
import os, time
from pathlib import Path
from echolm.serving.process import Command, GuardedProcess
process = GuardedProcess(Command("test", ["sleep", "60"], dict(os.environ),
    Path({str(tmp_path)!r}, "log"), Path({str(tmp_path)!r}, "pid")))
print(process.guard_pid, process.pid(), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    guard, program = map(int, parent.stdout.readline().split())
    os.kill(parent.pid if victim == "parent" else guard, signal.SIGKILL)
    assert eventually(lambda: not alive(program), timeout=5)
    parent.kill()
    parent.communicate()
    assert eventually(lambda: not alive(guard), timeout=5)


def test_program_survives_the_thread_that_started_it(command: Callable[..., Command]) -> None:
    started: list[GuardedProcess] = []
    thread = threading.Thread(target=lambda: started.append(GuardedProcess(command("sleep 60"))))
    thread.start()
    thread.join()
    time.sleep(0.6)
    assert started[0].poll() is None
    started[0].stop()


def test_what_a_program_writes_is_its_owner_s_only(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        assert wait(GuardedProcess(command(f"mkdir {tmp_path}/made; : > {tmp_path}/file"))) == 0
    finally:
        os.umask(before)
    found = [tmp_path / name for name in ("made", "file", "logs/test.log")]
    assert [path.stat().st_mode & 0o077 for path in found] == [0, 0, 0]


def test_a_program_runs_in_its_directory(command: Callable[..., Command], tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    made = command("pwd", directory=folder)
    assert wait(GuardedProcess(made)) == 0
    assert made.log_file.read_text().strip() == str(folder)
