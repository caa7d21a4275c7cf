"""Which processes are whose model's, and whether they live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from echolm.serving.stubs import is_gone, is_stopped, kill, stubs_of
from triton_calls import eventually


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks as that of the model ``echo`` does."""
    model = tmp_path / "core" / "echo" / "1" / "model.py"
    model.parent.mkdir(parents=True)
    model.write_text("import time\ntime.sleep(600)\n")
    program = ["/opt/backends/python/triton_python_backend_stub", str(model), "shm", "echo_0_0"]
    process = subprocess.Popen(program, executable=sys.executable)
    yield process
    process.kill()
    process.wait()


def test_processes_are_found_by_the_model_that_they_run(
    stub: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    models = {name: tmp_path / "core" / name for name in ("echo", "ech", "router")}
    found = stubs_of(os.getpid(), models)
    assert {name: [p.pid for p in processes] for name, processes in found.items()} == {
        "echo": [stub.pid]
    }
    other.communicate()
    assert stubs_of(stub.pid, models) == {}


def test_a_process_that_nobody_has_collected_is_gone(stub: subprocess.Popen[bytes]) -> None:
    process = psutil.Process(stub.pid)
    assert not is_gone(process)
    assert not is_stopped(process)
    os.kill(stub.pid, signal.SIGSTOP)
    assert eventually(lambda: is_stopped(process))
    assert not is_gone(process)
    kill([process])
    assert eventually(lambda: is_gone(process))  # a zombie: this test is its parent
    stub.wait()
    assert is_gone(process)
    assert not is_stopped(process)
    kill([process])
    assert stubs_of(stub.pid, {}) == {}
