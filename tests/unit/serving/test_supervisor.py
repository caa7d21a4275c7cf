"""What a supervisor does with processes that end, hang or do not start: servers of this test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import pytest
from echolm.errors import UnavailableError
from echolm.serving import supervisor as module
from echolm.serving.process import GuardedServer
from echolm.serving.restarts import Backoff
from echolm.serving.supervisor import Part, Supervisor
from echolm.serving.triton_server import TritonOptions, TritonServer
from triton_calls import eventually


class Server(GuardedServer):
    """A real process that does nothing, in the place of a server and of its guard."""

    def __init__(self) -> None:
        self.failures = 0
        self.starts = 0
        self.silences: Iterator[bool] = iter(())
        self._run()

    def _run(self) -> None:
        self._child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def start(self, stop: threading.Event | None = None) -> None:
        self.starts += 1
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no such file")
        self._run()

    def wait_ready(self, timeout_s: float, stop: threading.Event) -> None:
        pass

    @property
    def process(self) -> Server:  # type: ignore[override]
        return self

    def pid(self, timeout_s: float = 5.0) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        return self._child.poll()

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()

    def log_excerpt(self) -> str:
        return "last words"

    def is_silent(self, timeout_s: float) -> bool:
        return next(self.silences, False)

    def is_ready(self) -> bool:
        return self.poll() is None


class Run:
    """One run of :class:`TritonWithModel`, with the process of its model."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.child = child
        self.load()

    def load(self) -> None:
        self.model = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

    def pid(self, timeout_s: float = 5.0) -> int:
        return self.child.pid

    def poll(self) -> int | None:
        return self.child.poll()


class TritonWithModel(Server):
    """Calls ``disturb`` once, in the step of loading a model anew that a test names."""

    disturb_in = ""

    def _run(self) -> None:
        super()._run()
        self.run = Run(self._child)

    @property
    def process(self) -> Run:  # type: ignore[override]
        return self.run

    def kill(self) -> None:
        super().kill()
        self.run.model.kill()
        self.run.model.wait()

    def unload(self, name: str) -> None:
        self._step("unload")

    def load(self, name: str) -> None:
        self._step("load")
        if self.run.model.poll() is not None:  # as Triton, which leaves a loaded model as it is
            self.run.load()

    def _step(self, name: str) -> None:
        if name == self.disturb_in:
            self.disturb_in = ""
            self.disturb()

    def disturb(self) -> None:
        raise NotImplementedError


class World:
    def __init__(self) -> None:
        self.triton, self.milvus, self.gateway = Server(), Server(), Server()
        self.reports: list[str] = []
        others = {
            name: Part(server, server.start, Backoff(first_s=0.01))
            for name, server in (("milvus", self.milvus), ("gateway", self.gateway))
        }
        triton = cast(TritonServer, self.triton)
        self.supervisor = Supervisor(triton, {}, 1.0, others, self.reports.append)

    def restarts(self, name: str) -> int:
        return self.supervisor.processes[name].restarts

    def is_up(self, name: str) -> bool:
        return self.supervisor.processes[name].up


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "_LIVE_EVERY_S", 0.0)
    monkeypatch.setattr(module, "_TRITON_STARTS", 1)
    world = World()
    world.supervisor.start()
    yield world
    world.supervisor.stop()
    for server in (world.triton, world.milvus, world.gateway):
        server.kill()


def test_a_process_that_ends_is_started_again_and_the_others_stay(world: World) -> None:
    for n in range(1, 8):  # more often than five times in a life
        world.milvus.kill()
        assert eventually(lambda n=n: world.restarts("milvus") == n and world.is_up("milvus"))
    assert world.triton.starts == 0
    assert world.supervisor.is_live
    assert all("milvus ended by itself, exit status -9" in report for report in world.reports)


def test_a_process_that_does_not_start_is_tried_again(world: World) -> None:
    world.milvus.failures = 3
    world.milvus.kill()
    assert eventually(lambda: not world.is_up("milvus"))
    assert eventually(lambda: world.is_up("milvus"))
    assert world.milvus.starts == 4
    assert world.reports.count("no such file") == 3


def test_without_the_gateway_the_server_is_not_ready_and_without_milvus_it_is(world: World) -> None:
    world.milvus.failures = world.gateway.failures = 1_000_000
    assert world.supervisor.is_ready
    world.milvus.kill()
    assert eventually(lambda: not world.is_up("milvus"))
    assert world.supervisor.is_ready
    world.gateway.kill()
    assert eventually(lambda: not world.supervisor.is_ready)
    world.gateway.failures = 0
    assert eventually(lambda: world.supervisor.is_ready)


def test_a_process_that_was_stopped_is_ended_and_started_again(world: World) -> None:
    os.kill(world.milvus.pid(), signal.SIGSTOP)
    assert eventually(lambda: world.restarts("milvus") == 1 and world.is_up("milvus"))


def test_a_triton_that_ends_again_and_again_is_given_up(world: World) -> None:
    world.triton.kill()
    assert eventually(lambda: world.restarts("triton") == 1 and world.is_up("triton"))
    assert world.supervisor.is_ready
    assert world.supervisor.failure is None
    world.triton.kill()
    assert eventually(lambda: world.supervisor.failure is not None)
    assert str(world.supervisor.failure).endswith("again and again; last words")
    assert eventually(lambda: not world.supervisor.is_live)
    assert not world.supervisor.is_ready
    assert world.triton.starts == 1


def test_a_triton_that_misses_answers_now_and_then_is_kept(world: World) -> None:
    # All but every twelfth are missed: never twelve in a row.
    missed = [n % 12 > 0 for n in range(48)]
    world.triton.silences = (missed.pop() for _ in range(48))
    assert eventually(lambda: not missed)
    assert world.triton.starts == 0 and world.is_up("triton")


def test_a_triton_that_does_not_answer_again_and_again_is_started_again(world: World) -> None:
    world.triton.silences = iter([True] * 12)
    assert eventually(lambda: world.restarts("triton") == 1 and world.is_up("triton"))
    assert "Triton was asked 12 times in a row and did not answer" in world.reports


def test_only_a_triton_that_lets_callers_wait_is_silent(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = int(listener.getsockname()[1])
        options = TritonOptions((), tmp_path, tmp_path / "triton.log", http_port=port)
        triton = TritonServer(options)
        assert triton.is_silent(0.05)
    assert not triton.is_silent(5.0)  # the connection is refused


@pytest.mark.parametrize("step", ["unload", "load"])
def test_a_model_is_still_watched_after_triton_ended_while_it_was_loaded_anew(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stubs_of(pid: int, models: object) -> dict[str, list[psutil.Process]]:
        assert pid == triton.pid()
        return {"small_llm": [psutil.Process(triton.run.model.pid)]}

    def end_and_wait() -> None:
        triton.kill()
        assert eventually(lambda: supervisor.processes["triton"].restarts == 1)
        assert eventually(lambda: supervisor.processes["triton"].up)

    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    monkeypatch.setattr(module, "stubs_of", stubs_of)
    triton = TritonWithModel()
    triton.disturb_in = step
    monkeypatch.setattr(triton, "disturb", end_and_wait)
    supervisor = Supervisor(cast(TritonServer, triton), {}, 1.0, {}, lambda report: None)
    supervisor.start()
    try:
        triton.run.model.kill()
        triton.run.model.wait()
        assert eventually(lambda: triton.starts == 1 and supervisor.models["small_llm"].up)
        assert supervisor.models["small_llm"].restarts == 0
        second = triton.run.model
        second.kill()
        second.wait()
        assert eventually(lambda: supervisor.models["small_llm"].restarts == 1)
        assert supervisor.models["small_llm"].up and triton.run.model is not second
    finally:
        supervisor.stop()
        triton.kill()


def test_a_stop_waits_once_for_all_that_does_not_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """Stands still but for joins, which take as long as they may."""

        now = 0.0

        def monotonic(self) -> float:
            return self.now

    class Stuck:
        def join(self, timeout_s: float) -> None:
            clock.now += timeout_s

    clock = Clock()
    with monkeypatch.context() as patched:
        patched.setattr(module, "time", clock)
        patched.setattr(world.supervisor, "_threads", [Stuck(), Stuck(), Stuck()])
        world.supervisor.stop()
    assert 0 < clock.now == module._JOIN_S


def test_after_a_stop_nothing_is_started(world: World) -> None:
    world.supervisor.stop()
    world.milvus.kill()
    assert not world.supervisor.is_ready
    assert world.milvus.starts == 0
