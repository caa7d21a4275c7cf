"""The worker process: events, failure, restart, end; with a stepper that needs no model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from echolm.engines.base import GenerationChunk, GenerationRequest
from echolm.engines.worker.messages import Event
from echolm.engines.worker.parent import WorkerEngine, join_pieces
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError

FACTORY = "tests.unit.engines.test_worker:CountingStepper"


class CountingStepper:
    """Gives one word of a prompt in each step."""

    def __init__(self, fail: str = "", step_s: float = 0.0) -> None:
        if fail:
            raise ConfigurationError(fail)
        self._step_s = step_s
        self._words: dict[str, list[str]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._words)

    def add(self, request: GenerationRequest) -> None:
        if request.prompt == "bad":
            raise InvalidRequestError("bad prompt")
        self._words[request.request_id] = request.prompt.split()

    def cancel(self, request_id: str) -> Event | None:
        if self._words.pop(request_id, None) is None:
            return None
        return request_id, GenerationChunk("", "cancelled", 0, 0)

    def step(self) -> list[Event]:
        time.sleep(self._step_s)
        events: list[Event] = []
        for key, words in list(self._words.items()):
            word = words.pop(0)
            if word == "raise":
                raise RuntimeError("told to")
            if word == "die":
                os._exit(9)
            if not words:
                del self._words[key]
            events.append((key, GenerationChunk(word, None if words else "stop", 0, 0)))
        return events

    def prefix_hit_tokens(self) -> int | None:
        return 5


class Collector:
    def __init__(self) -> None:
        self.events: list[GenerationChunk | Exception] = []
        self.ended = threading.Event()

    def __call__(self, event: GenerationChunk | Exception) -> None:
        self.events.append(event)
        if isinstance(event, Exception) or event.is_last:
            self.ended.set()

    def wait(self) -> GenerationChunk | Exception:
        assert self.ended.wait(20)
        return self.events[-1]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv("PYTHONPATH", str(request.config.rootpath))


def start(**arguments: Any) -> WorkerEngine:
    return WorkerEngine("test", "stepper", FACTORY, arguments)


def ask(engine: WorkerEngine, key: str, prompt: str) -> Collector:
    collector = Collector()
    engine.submit(GenerationRequest(key, prompt), collector)
    return collector


def wait_until_ready(engine: WorkerEngine) -> None:
    deadline = time.monotonic() + 20
    while not engine.stats().ready:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_many_requests_come_in_order_and_a_bad_one_fails_alone() -> None:
    engine = start()
    good = [ask(engine, str(i), f"a{i} b c") for i in range(500)]
    bad = ask(engine, "bad", "bad")
    assert isinstance(bad.wait(), InvalidRequestError)
    for i, collector in enumerate(good):
        collector.wait()
        # Pieces that wait may come as one.
        texts = [event.text for event in collector.events if isinstance(event, GenerationChunk)]
        assert "".join(texts) == f"a{i}bc"
    assert engine.stats().in_flight == 0
    assert engine.stats().prefix_hit_tokens == 5
    engine.close()
    assert gone(engine.pid)


def test_cancel_ends_a_request() -> None:
    engine = start(step_s=0.02)
    collector = ask(engine, "1", "a " * 1000)
    engine.cancel("1")
    engine.cancel("unknown")
    last = collector.wait()
    assert isinstance(last, GenerationChunk)
    assert last.finish_reason == "cancelled"
    engine.close()


@pytest.mark.parametrize("word", ["raise", "die"])
def test_failed_worker_fails_what_is_in_flight_and_starts_anew(word: str) -> None:
    engine = start(step_s=0.01)
    first, long = ask(engine, "1", f"a {word}"), ask(engine, "2", "a " * 1000)
    assert isinstance(first.wait(), UnavailableError)
    assert isinstance(long.wait(), UnavailableError)
    wait_until_ready(engine)
    assert engine.stats().restarts == 1
    assert isinstance(ask(engine, "3", "a b").wait(), GenerationChunk)
    engine.close()


def test_model_that_cannot_load_says_why() -> None:
    with pytest.raises(ConfigurationError, match="no such file"):
        start(fail="no such file")


def test_close_fails_what_is_in_flight_and_leaves_no_process() -> None:
    engine = start(step_s=0.02)
    collector = ask(engine, "1", "a " * 1000)
    engine.close()
    engine.close()
    assert isinstance(collector.wait(), UnavailableError)
    assert gone(engine.pid)
    with pytest.raises(UnavailableError, match="closed"):
        ask(engine, "2", "a")


def test_worker_outlives_the_signals_that_end_a_server() -> None:
    engine = start()
    os.kill(engine.pid, signal.SIGTERM)
    os.kill(engine.pid, signal.SIGINT)
    assert isinstance(ask(engine, "1", "a").wait(), GenerationChunk)
    engine.close()


def test_a_worker_needs_only_numpy_and_psutil_of_its_environment() -> None:
    code = """
import sys
from importlib import import_module
before = set(sys.modules)
for name in ("worker.child", "vllm", "tensorrt_llm", "openvino"):
    import_module(f"echolm.engines.{name}")
files = {name: getattr(sys.modules[name], "__file__", None) for name in sys.modules}
names = {name.partition(".")[0] for name, file in files.items() if file and name not in before}
print(*sorted(names - set(sys.stdlib_module_names)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) <= {"echolm", "numpy", "psutil"}


def test_waiting_pieces_become_one_per_request() -> None:
    def chunk(text: str, reason: str | None = None, count: int = 1) -> GenerationChunk:
        return GenerationChunk(text, reason, 1, count)

    problem = UnavailableError("gone")
    events: list[Event] = [("1", chunk("a")), ("2", chunk("x")), ("1", chunk("b", "stop", 2))]
    assert join_pieces(events) == [("1", chunk("ab", "stop", 2)), ("2", chunk("x"))]
    assert join_pieces([("1", chunk("a")), ("1", problem)]) == [("1", problem)]
