"""What the engines over vLLM and TensorRT-LLM share: options, failures, and their end.

The libraries are stand-ins (``tests/standins``), in the engines' real worker processes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pytest
from echolm.engines import create_engine
from echolm.engines.base import GenerationChunk, GenerationRequest
from echolm.engines.gpu import GPUOptions, check_model, loading
from echolm.engines.options import read_options
from echolm.engines.tensorrt_llm import TensorRTLLMOptions
from echolm.engines.vllm import VLLMOptions
from echolm.engines.worker.parent import ENV_LIBRARY_PATH, WorkerEngine
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError
from echolm.primitives import Sampling

OPTIONS: dict[str, type[GPUOptions]] = {"vllm": VLLMOptions, "tensorrt_llm": TensorRTLLMOptions}


@pytest.fixture(params=sorted(OPTIONS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(name: str, standins: Path, checkpoint: Path) -> Iterator[WorkerEngine]:
    engine = create_engine(name, checkpoint)
    assert isinstance(engine, WorkerEngine)
    yield engine
    engine.close()


class Answer:
    def __init__(self) -> None:
        self.events: list[GenerationChunk | Exception] = []
        self.ended = threading.Event()

    def __call__(self, event: GenerationChunk | Exception) -> None:
        self.events.append(event)
        if isinstance(event, Exception) or event.is_last:
            self.ended.set()

    def wait(self) -> GenerationChunk | Exception:
        assert self.ended.wait(30)
        return self.events[-1]


def ask(engine: WorkerEngine, key: str, prompt: str, streaming: bool = False) -> Answer:
    answer = Answer()
    request = GenerationRequest(key, prompt, Sampling(max_tokens=50), streaming)
    engine.submit(request, answer)
    return answer


def eventually(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tensor_parallel_size": "0"}, "tensor_parallel_size: expected at least 1, got 0"),
        ({"gpus": "0;1"}, "gpus: expected numbers as 0,1, got '0;1'"),
        ({"gpus": "0", "pipeline_parallel_size": "2"}, "gpus: expected 2 of them"),
        ({"copies": "0"}, "copies: expected at least 1, got 0"),
        ({"python": "/no/such/python"}, "python: expected a Python interpreter"),
        ({"engine_args": "{"}, "engine_args: expected a JSON object"),
        ({"engine_args": "[1]"}, "engine_args: expected a JSON object"),
        ({"engine_args": '{"dtype": "half"}'}, "got dtype; set that as an option"),
        ({"start_timeout_s": "0"}, "start_timeout_s: expected at least 1"),
        ({"max_len": "5"}, "'max_len'"),
    ],
)
def test_wrong_option_is_refused(name: str, values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"engine {name}.*{message}"):
        read_options(OPTIONS[name], values, name)


def test_a_name_on_the_hub_is_left_to_the_library_and_a_folder_must_have_a_checkpoint(
    name: str, tmp_path: Path
) -> None:
    kind = OPTIONS[name]
    assert check_model(name, tmp_path, kind(model="Qwen/Qwen3-8B")) == "Qwen/Qwen3-8B"
    for options in (kind(), kind(model=str(tmp_path))):
        with pytest.raises(ConfigurationError, match=rf"checkpoint in {tmp_path}, got no config"):
            check_model(name, tmp_path, options)


def test_without_the_library_the_way_to_it_is_told(name: str, checkpoint: Path) -> None:
    with contextlib.suppress(PackageNotFoundError):
        pytest.skip(f"{name} {version(name)} is installed")
    with pytest.raises(ConfigurationError, match="option python"):
        create_engine(name, checkpoint)


@pytest.mark.parametrize("options", [{"engine_args": '{"block_sise": 32}'}])
def test_what_the_library_does_not_know_is_a_configuration_error(
    name: str, standins: Path, checkpoint: Path, options: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError, match="block_sise"):
        create_engine(name, checkpoint, options)


def test_an_engine_that_cannot_start_says_so(name: str, standins: Path, checkpoint: Path) -> None:
    (checkpoint / "too-big").touch()
    with pytest.raises(UnavailableError, match="initialization"):
        create_engine(name, checkpoint)


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ("refuse this please", InvalidRequestError, "told to refuse"),
        ("break in the middle", UnavailableError, "engine .*: RuntimeError"),
    ],
)
def test_a_request_that_fails_fails_alone(
    engine: WorkerEngine, prompt: str, kind: type[Exception], message: str
) -> None:
    good = [ask(engine, f"good {n}", "a b c d", streaming=True) for n in range(5)]
    with pytest.raises(kind, match=message):
        raise ask(engine, "bad", prompt).wait()  # type: ignore[misc]
    assert all(isinstance(answer.wait(), GenerationChunk) for answer in good)
    stats = engine.stats()
    assert (stats.ready, stats.in_flight, stats.restarts) == (True, 0, 0)


@pytest.mark.parametrize("word", ["kill", "vanish"])
def test_a_dead_engine_fails_what_is_in_flight_and_starts_anew(
    engine: WorkerEngine, word: str
) -> None:
    pid = engine.pid
    slow = ask(engine, "1", "slowly but surely", streaming=True)
    fatal = ask(engine, "2", f"{word} the engine")
    assert isinstance(fatal.wait(), UnavailableError)
    assert isinstance(slow.wait(), UnavailableError)
    eventually(lambda: engine.stats().restarts == 1 and engine.stats().ready)
    assert engine.pid != pid
    assert isinstance(ask(engine, "3", "a b c").wait(), GenerationChunk)


def test_processes_of_a_killed_worker_are_ended(engine: WorkerEngine) -> None:
    """They outlive it, and would keep the GPU."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        engine._children.append(psutil.Process(child.pid))
        os.kill(engine.pid, 9)
        eventually(lambda: not psutil.pid_exists(child.pid))
        eventually(lambda: engine.stats().ready)
    finally:
        child.kill()


def test_another_interpreter_gets_its_gpus_and_the_callers_libraries(
    name: str,
    standins: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/triton")
    monkeypatch.setenv(ENV_LIBRARY_PATH, "/of/the/caller")
    python = tmp_path / "python"
    report = "echo $CUDA_VISIBLE_DEVICES $LD_LIBRARY_PATH"
    python.write_text(f'#!/bin/sh\n{report} > {tmp_path}/gpus\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    engine = create_engine(name, checkpoint, {"python": str(python), "gpus": "2,3"})
    try:
        assert (tmp_path / "gpus").read_text().strip() == "2,3 /of/the/caller"
    finally:
        engine.close()


def test_gpus_are_loaded_by_one_at_a_time() -> None:
    def take(gpus: str) -> bool:
        """Whether another thread gets the GPUs while they are held here."""
        got = threading.Event()

        def load() -> None:
            with loading(gpus):
                got.set()

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        waiting.append(thread)
        return got.wait(0.3)

    waiting: list[threading.Thread] = []
    with loading("7001,7002"):
        held = [take("7002"), take("7003,7001"), take(""), take("7004")]
    assert held == [False, False, False, True]
    for thread in waiting:
        thread.join(10)
        assert not thread.is_alive()
    with loading("7001"):
        assert take("7002")
