"""What ``echolm build`` writes, served by a real Triton; the libraries' classes are stand-ins.

They run in the worker processes that the option ``python`` names, as a real vLLM does in an
environment of its own.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as grpcclient
from echolm.embedding import minilm
from echolm.serving import Endpoints, ServeOptions, running_server
from echolm.serving.build import BuildOptions, LLMChoice, build, built_root
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from triton_calls import Caller, eventually, inputs, refusal, samples, streams, text

ROOT = Path(__file__).resolve().parents[2]
STANDINS = ROOT / "tests" / "standins"
CHECKPOINTS = {
    role: ROOT / "model_repository" / "local" / f"{role}_llm" / "1" / "openvino"
    for role in ("small", "large")
}


@dataclass
class Deployment:
    endpoints: Endpoints
    caller: Caller
    profile: str


@pytest.fixture(scope="module", params=["vllm", "tensorrt_llm"])
def deployment(
    request: pytest.FixtureRequest,
    server_settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    profile, folder = request.param, tmp_path_factory.mktemp("gpu")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={STANDINS} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    llms = {}
    for role, source in CHECKPOINTS.items():
        model = folder / f"{role}-model"
        model.mkdir()
        for file in ("config.json", "generation_config.json", "tokenizer.json"):
            shutil.copy(source / file, model / file)
        options = {"python": str(python), "load_format": "dummy"}
        if profile == "tensorrt_llm":
            options["gpu_memory_share"] = "0"  # no nvidia-smi
        llms[role] = LLMChoice(str(model), context=512, options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minilm, "build", no_embedder)
        config = build(BuildOptions(profile, llms, folder / "built", processes=2), print)
    if profile == "tensorrt_llm":  # The wheel's Triton has no ONNX Runtime backend.
        embedder = config.parent / profile / "embedder"
        shutil.rmtree(embedder)
        shutil.copytree(ROOT / "model_repository" / "local" / "embedder", embedder)
    settings = load_settings(config).model_copy(update={"embedding": server_settings.embedding})
    serve = ServeOptions(
        profile=profile,
        repository_root=built_root(config, profile),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    with running_server(settings, serve) as endpoints:
        yield Deployment(endpoints, Caller(endpoints), profile)


def no_embedder(directory: Path, form: str) -> None:
    """Building it takes a while; the checkout's is served."""
    directory.mkdir()
    (directory / "model.onnx").touch()


def workers(endpoints: Endpoints) -> list[psutil.Process]:
    """The engines' processes."""
    return [
        process
        for process in psutil.Process(endpoints.pids["triton"]).children(recursive=True)
        if any(part.startswith("--factory=echolm.engines.") for part in process.cmdline())
    ]


def test_both_llms_answer_through_the_router(deployment: Deployment) -> None:
    for name in ("small_llm", "large_llm"):
        answer = deployment.caller.ask("How many orders are open?", llm=name, max_tokens=12)
        assert (text(answer, "llm"), text(answer, "degraded")) == (name, "")
        assert len(text(answer, "text_output").split()) == 12
        assert text(answer, "finish_reason") == "length"
        assert answer["num_output_tokens"].item() == 12
        assert answer["num_input_tokens"].item() >= 5


def test_tokens_are_told_by_engines_that_can(deployment: Deployment) -> None:
    asked = {"llm": "small_llm", "max_tokens": 12, "logprobs": 2}
    if deployment.profile != "vllm":
        told = refusal(lambda: deployment.caller.ask("How many orders?", **asked))
        assert "logprobs: expected nothing, since small_llm cannot take it" in told
        return
    tokens = json.loads(text(deployment.caller.ask("How many orders?", **asked), "logprobs"))
    assert len(tokens) == 12
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)


def test_a_stop_word_and_a_seed_reach_the_engine(deployment: Deployment) -> None:
    ask = deployment.caller.ask
    options: dict[str, Any] = {"llm": "small_llm", "temperature": 0.9, "seed": 2**63 + 5}
    whole = text(ask("Tell me more", **options), "text_output")
    assert whole == text(ask("Tell me more", **options), "text_output")
    word = whole.split()[7]
    cut = ask("Tell me more", stop_words=[word], **options)
    assert text(cut, "text_output") == whole[: whole.index(word)]
    assert text(cut, "finish_reason") == "stop"


def test_a_stream_comes_in_pieces(deployment: Deployment) -> None:
    with streams(deployment.endpoints) as (client, arrived):
        row = {"text_input": "slowly please", "llm": "small_llm", "stream": True}
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        pieces = []
        while True:
            result, error = arrived.get(timeout=30)
            assert error is None
            pieces.append(result.as_numpy("text_output").item().decode())
            if result.as_numpy("llm") is not None:
                break
    whole = text(deployment.caller.ask("slowly please", llm="small_llm"), "text_output")
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_a_prompt_that_is_too_long_is_refused(deployment: Deployment) -> None:
    said = refusal(lambda: deployment.caller.ask("word " * 600, llm="small_llm"))
    assert "INVALID_ARGUMENT" in said
    assert "512 tokens" in said


def test_two_retrievers_learn_and_answer(deployment: Deployment) -> None:
    def learnt(process: str) -> float:
        name = "echolm_learning_events_total"
        return samples(deployment.endpoints, name, result="applied", model=process)

    with ThreadPoolExecutor(16) as pool:
        asking = [pool.submit(deployment.caller.ask, f"request {n}") for n in range(64)]
    answers = [one.result() for one in asking]
    assert {text(answer, "degraded") for answer in answers} == {""}
    before = {process: learnt(process) for process in ("retriever", "retriever_0_1")}
    assert deployment.caller.rate(answers[0]["feedback_token"].item(), score=1.0)
    assert eventually(lambda: all(learnt(p) > before[p] for p in before))


def test_many_are_in_flight_at_once(deployment: Deployment) -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    for n in range(100):
        row = {"text_input": f"request {n}", "llm": "small_llm", "cache_control": "no-cache"}
        deployment.caller.client.async_infer(
            "echolm", inputs(grpcclient, [row]), lambda result, error: arrived.put((result, error))
        )
    results = [arrived.get(timeout=60) for _ in range(100)]
    assert [error for _, error in results if error is not None] == []


def test_a_killed_engine_comes_back_and_the_other_llm_answers_meanwhile(
    deployment: Deployment,
) -> None:
    before = workers(deployment.endpoints)
    assert len(before) == 2
    for process in before:
        if any("small-model" in part for part in process.cmdline()):
            process.kill()
    answer = deployment.caller.ask("are you there", llm="small_llm")
    assert text(answer, "llm") in ("small_llm", "large_llm")

    def back() -> bool:
        return text(deployment.caller.ask("are you there", llm="small_llm"), "degraded") == ""

    assert eventually(back)
    assert eventually(
        lambda: samples(deployment.endpoints, "echolm_llm_restarts_total", model="small_llm") == 1
    )


def test_prompts_and_what_was_cached_are_counted(deployment: Deployment) -> None:
    prompt = "one two three four five six seven eight nine ten eleven twelve thirteen"
    for _ in range(3):
        deployment.caller.ask(prompt, llm="large_llm", max_tokens=2)
    hits = "echolm_llm_prefix_hit_tokens_total"
    assert eventually(lambda: samples(deployment.endpoints, hits, model="large_llm") >= 8)


def test_the_engines_end_with_the_server(server_settings: Settings, deployment: Deployment) -> None:
    """Last: nothing is left that could hold a GPU."""
    found = workers(deployment.endpoints)
    assert len(found) == 2
    os.kill(deployment.endpoints.pids["triton"], 9)
    started = time.monotonic()
    gone, alive = psutil.wait_procs(found, timeout=20)
    assert (len(gone), alive) == (2, [])
    assert time.monotonic() - started < 20
