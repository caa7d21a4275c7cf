"""What is vLLM's own: its options, what it is given, and how its failures end.

The library is a stand-in (``tests/standins``); where the real one is installed, the stand-in's
signatures are compared with it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from echolm.engines import create_engine
from echolm.engines.base import GenerationChunk, GenerationRequest, SamplingParams
from echolm.engines.gpu import check_model, loading
from echolm.engines.options import read_options
from echolm.engines.vllm import VLLMOptions, engine_arguments, sampling_params
from echolm.engines.worker import ENV_LIBRARY_PATH, WorkerEngine
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError

STANDINS = Path(__file__).resolve().parents[2] / "standins"


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = str(STANDINS) + os.pathsep + os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(STANDINS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("vllm", "standin_lm"):
            del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


@pytest.fixture
def engine(standins: None, checkpoint: Path) -> Iterator[WorkerEngine]:
    made = create_engine("vllm", checkpoint)
    assert isinstance(made, WorkerEngine)
    yield made
    made.close()


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
    request = GenerationRequest(key, prompt, SamplingParams(max_tokens=50), streaming)
    engine.submit(request, answer)
    return answer


def eventually(true: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tensor_parallel_size": "0"}, "tensor_parallel_size: expected at least 1, got 0"),
        ({"gpu_memory_utilization": "1.5"}, r"expected a share in \(0, 1\], got 1.5"),
        ({"max_num_seqs": "0"}, "max_num_seqs: expected at least 1"),
        ({"max_model_len": "-1"}, "max_model_len: expected at least 0"),
        ({"gpus": "0;1"}, "gpus: expected numbers as 0,1, got '0;1'"),
        ({"gpus": "0", "tensor_parallel_size": "2"}, "gpus: expected 2 of them"),
        ({"python": "/no/such/python"}, "python: expected a Python interpreter"),
        ({"engine_args": "{"}, "engine_args: expected a JSON object"),
        ({"engine_args": "[1]"}, "engine_args: expected a JSON object"),
        ({"engine_args": '{"dtype": "half"}'}, "got dtype; set that as an option"),
        ({"start_timeout_s": "0"}, "start_timeout_s: expected at least 1"),
        ({"max_len": "5"}, "'max_len'"),
    ],
)
def test_wrong_option_is_refused(values: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_options(VLLMOptions, values, "vllm")


def test_vllm_gets_its_arguments_by_its_own_names() -> None:
    options = VLLMOptions(quantization="fp8", max_model_len=4096, load_format="dummy", gpus="1")
    given = engine_arguments("/m", options)
    assert given["enable_prefix_caching"] is True
    assert {k: given[k] for k in ("model", "quantization", "max_model_len", "load_format")} == {
        "model": "/m",
        "quantization": "fp8",
        "max_model_len": 4096,
        "load_format": "dummy",
    }
    assert not {"gpus", "python", "max_num_batched_tokens", "tokenizer"} & set(given)
    assert options.environment == {"CUDA_VISIBLE_DEVICES": "1"}


def test_what_stands_in_for_an_option_that_is_off(standins: None) -> None:
    greedy = sampling_params(SamplingParams(), streaming=False)
    assert (greedy.temperature, greedy.top_k, greedy.seed, greedy.logprobs) == (0, 0, None, None)
    assert greedy.output_kind.name == "FINAL_ONLY"
    told = sampling_params(SamplingParams(logprobs=True, seed=2**64 - 1), streaming=True)
    assert told.logprobs == 0
    assert 0 <= told.seed < 2**63
    assert told.output_kind.name == "DELTA"


def test_a_name_on_the_hub_is_left_to_vllm_and_a_folder_must_have_a_checkpoint(
    tmp_path: Path,
) -> None:
    assert check_model("vllm", tmp_path, VLLMOptions(model="Qwen/Qwen3-8B")) == "Qwen/Qwen3-8B"
    for options in (VLLMOptions(), VLLMOptions(model=str(tmp_path))):
        with pytest.raises(ConfigurationError, match=rf"checkpoint in {tmp_path}, got no config"):
            check_model("vllm", tmp_path, options)


def test_without_vllm_the_way_to_install_it_is_told(checkpoint: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(ConfigurationError, match=r"pip install vllm==.*option python"):
        create_engine("vllm", checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine_args": '{"block_sise": 32}'}, "got block_sise"),
        ({"dtype": "half-ish"}, "vLLM refused it: dtype:.*Input should be"),
        ({"model": "no/such-model"}, "no/such-model does not appear to have a file named"),
    ],
)
def test_what_vllm_refuses_is_a_configuration_error(
    standins: None, checkpoint: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        create_engine("vllm", checkpoint, options)


def test_an_engine_that_cannot_start_says_so(standins: None, checkpoint: Path) -> None:
    (checkpoint / "too-big").touch()
    with pytest.raises(UnavailableError, match="Engine core initialization failed"):
        create_engine("vllm", checkpoint)


def test_arguments_without_an_option_reach_vllm(standins: None, checkpoint: Path) -> None:
    create_engine("vllm", checkpoint, {"engine_args": '{"block_size": 32}'}).close()


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ("refuse this please", InvalidRequestError, "told to refuse"),
        ("break in the middle", UnavailableError, "engine vllm: RuntimeError"),
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
    """vLLM's engine process outlives its parent, and would keep the GPU."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    try:
        engine._children.append(psutil.Process(child.pid))
        os.kill(engine.pid, 9)
        eventually(lambda: not psutil.pid_exists(child.pid))
        eventually(lambda: engine.stats().ready)
    finally:
        child.kill()


def test_another_interpreter_gets_its_gpus_and_the_callers_libraries(
    standins: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/triton")
    monkeypatch.setenv(ENV_LIBRARY_PATH, "/of/the/caller")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho $CUDA_VISIBLE_DEVICES $LD_LIBRARY_PATH > {tmp_path}/gpus\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    engine = create_engine("vllm", checkpoint, {"python": str(python), "gpus": "2,3"})
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


SIGNATURES = """
import dataclasses, inspect, json
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
names = ("generate", "abort", "shutdown", "from_engine_args", "get_tokenizer")
found = {name: list(inspect.signature(getattr(AsyncLLM, name)).parameters) for name in names}
found["tokens_input"] = list(inspect.signature(tokens_input).parameters)
found["SamplingParams"] = list(inspect.signature(SamplingParams).parameters)
found["AsyncEngineArgs"] = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
found["RequestOutputKind"] = [kind.name for kind in RequestOutputKind]
found["errored"] = [type(inspect.getattr_static(AsyncLLM, "errored")).__name__]
print(json.dumps(found))
"""


def test_the_stand_in_has_vllms_signatures() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    found = []
    for path in ("", str(STANDINS)):
        run = subprocess.run(
            [sys.executable, "-c", SIGNATURES],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            check=True,
        )
        found.append(json.loads(run.stdout.splitlines()[-1]))
    real, standin = found
    for name, parameters in standin.items():
        assert set(parameters) <= set(real[name]), name
