"""Parts that fail while the server runs: real Triton and Milvus Lite, LLMs that fail on demand."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as grpcclient
from dummy_llm import core_with, dummy_llm
from echolm.serving.serve import Endpoints, LocalServer
from echolm.serving.supervisor import Supervisor
from echolm.settings import JudgingSettings, LLMSettings, Settings
from echolm_lab.experiments.faults import Traffic, logged_scores
from echolm_lab.experiments.faults import scores as different_scores
from triton_calls import Caller, eventually, inputs, refusal, samples, streams, text
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.timeout(240)

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
LLMS = {
    "small_llm": {"text": "small says so", "fail_if_contains": "NO-SMALL"},
    "large_llm": {"text": "large says so", "fail_if_contains": "NO-LARGE"},
    "slow_llm": {"text": "slow says so", "delay_s": "1", "fail_if_contains": "NO-SLOW"},
}


@dataclass
class Deployment:
    server: LocalServer
    endpoints: Endpoints


@pytest.fixture(scope="module")
def deployment(
    server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(REPOSITORY / "local" / "embedder", models / "embedder")
    for name, options in LLMS.items():
        dummy_llm(name, options, models)
    settings = server_settings.model_copy(
        update={
            "data_dir": tmp_path_factory.mktemp("outages") / "data",
            "judging": JudgingSettings(kind="none"),
            "llms": (
                LLMSettings(
                    chat_template="echolm", name="small_llm", cost=0.1, takes_examples=True
                ),
                LLMSettings(
                    chat_template="echolm", name="large_llm", cost=1.0, takes_examples=False
                ),
                LLMSettings(
                    chat_template="echolm", name="slow_llm", cost=0.5, takes_examples=False
                ),
            ),
        }
    )
    options = core_with(models)
    server = LocalServer(settings, options)
    try:
        yield Deployment(server, server.start())
    finally:
        server.stop()


@pytest.fixture
def caller(deployment: Deployment) -> Caller:
    return Caller(deployment.endpoints)


def count(deployment: Deployment, name: str, **labels: str) -> float:
    return samples(deployment.endpoints, name, **labels)


def test_another_llm_answers_for_one_that_fails(deployment: Deployment, caller: Caller) -> None:
    before = count(deployment, "echolm_degraded_total", part="small_llm")
    answer = caller.ask("NO-SMALL please", llm="small_llm")
    assert text(answer, "text_output") == "large says so"
    assert (text(answer, "llm"), text(answer, "degraded")) == ("large_llm", "small_llm unavailable")
    assert eventually(lambda: count(deployment, "echolm_degraded_total", part="small_llm") > before)
    # And the LLM as such is well.
    assert text(caller.ask("hello", llm="small_llm"), "degraded") == ""


def test_a_stream_that_has_not_begun_is_taken_over(deployment: Deployment) -> None:
    with streams(deployment.endpoints) as (client, arrived):
        row = {"text_input": "NO-SMALL please", "llm": "small_llm", "stream": True}
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        pieces = []
        while True:
            result, error = arrived.get(timeout=30)
            assert error is None
            pieces.append(result.as_numpy("text_output").item().decode())
            if result.as_numpy("llm") is not None:
                break
    assert "".join(pieces) == "large says so"
    assert result.as_numpy("degraded").item() == b"small_llm unavailable"


def test_a_row_that_fails_fails_its_request_only(caller: Caller) -> None:
    good = {"text_input": "hello", "llm": "large_llm"}
    answer = caller.ask_rows(good, {"text_input": "NO-SMALL", "llm": "small_llm"}, good)
    assert [text(answer, "llm", row) for row in range(3)] == ["large_llm"] * 3
    assert [text(answer, "degraded", row) for row in range(3)] == ["", "small_llm unavailable", ""]


def test_500_slow_generations_run_at_the_same_time(deployment: Deployment, caller: Caller) -> None:
    """One second each: one after the other, or six at a time, they would take minutes."""
    arrived: queue.Queue[Any] = queue.Queue()
    started = time.monotonic()
    for n in range(500):
        row = {"text_input": f"request {n}", "llm": "slow_llm", "cache_control": "no-cache"}
        caller.client.async_infer(
            "echolm", inputs(grpcclient, [row]), lambda result, error: arrived.put((result, error))
        )
    results = [arrived.get(timeout=60) for _ in range(500)]
    assert [error for _, error in results if error is not None] == []
    assert {result.as_numpy("text_output").item() for result, _ in results} == {b"slow says so"}
    assert time.monotonic() - started < 45


def test_other_requests_do_not_wait_for_a_slow_llm(caller: Caller) -> None:
    arrived: queue.Queue[Any] = queue.Queue()
    row = {"text_input": "slow", "llm": "slow_llm", "cache_control": "no-cache"}
    for _ in range(20):
        caller.client.async_infer(
            "echolm", inputs(grpcclient, [row]), lambda result, error: arrived.put(error)
        )
    assert text(caller.ask("quick", llm="large_llm", cache_control="no-cache"), "text_output")
    assert arrived.empty()
    assert [arrived.get(timeout=30) for _ in range(20)] == [None] * 20


def test_without_milvus_answers_come_without_examples_and_later_with_them_again(
    deployment: Deployment, caller: Caller
) -> None:
    tenant = {"tenant": "outage"}
    caller.ask("the first thing to know", llm="large_llm", **tenant)

    def examples(request: str) -> int:
        answer = caller.ask(request, llm="small_llm", **tenant)
        return int((answer["example_ids"] > 0).sum())

    assert eventually(lambda: examples("the first thing to know"))
    before = count(deployment, "echolm_degraded_total", part="retrieval")

    os.kill(deployment.endpoints.pids["milvus"], signal.SIGKILL)
    milvus = deployment.server._milvus
    assert milvus is not None
    assert eventually(lambda: milvus.poll() is not None)
    for _ in range(5):
        answer = caller.ask("the first thing to know", llm="small_llm", **tenant)
        assert text(answer, "text_output") == "small says so"
        assert text(answer, "degraded") == "no examples: example store unavailable"
        assert answer["example_ids"].shape == (1, 0)
    stored = caller.ask("another thing that is told during the outage", llm="large_llm", **tenant)
    assert text(stored, "llm") == "large_llm"
    assert eventually(
        lambda: count(deployment, "echolm_degraded_total", part="retrieval") >= before + 5
    )

    milvus.start()  # at the same address
    assert eventually(lambda: examples("the first thing to know"))
    answer = caller.ask("the first thing to know", llm="small_llm", **tenant)
    assert text(answer, "degraded") == ""
    # What was answered meanwhile was kept and is written now.
    assert eventually(lambda: examples("another thing that is told during the outage"))


def test_only_when_no_llm_answers_is_there_an_error(deployment: Deployment, caller: Caller) -> None:
    before = count(deployment, "echolm_failed_total", reason="no_llm")
    got = refusal(lambda: caller.ask("NO-SMALL NO-LARGE NO-SLOW"))
    assert got.startswith("StatusCode.UNAVAILABLE [unavailable] no LLM answered: ")
    assert all(f"{name} unavailable" in got for name in LLMS)
    assert eventually(lambda: count(deployment, "echolm_failed_total", reason="no_llm") > before)
    assert text(caller.ask("hello"), "text_output")


def test_clients_that_leave_are_noticed_while_every_thread_waits_for_an_llm(
    deployment: Deployment, caller: Caller
) -> None:
    """Those that nobody waits for any more are never generated."""
    number = 1_500
    before = count(deployment, "echolm_llm_generated_tokens_total", model="slow_llm")
    row = {"text_input": "leave", "llm": "slow_llm", "cache_control": "no-cache"}
    calls = [
        caller.client.async_infer("echolm", inputs(grpcclient, [row]), lambda result, error: None)
        for _ in range(number)
    ]
    for call in calls:
        call.cancel()
    assert text(caller.ask("hello", llm="large_llm"), "text_output")
    assert eventually(lambda: count(deployment, "echolm_in_flight") == 0)
    assert eventually(lambda: count(deployment, "echolm_llm_in_flight") == 0)
    after = count(deployment, "echolm_llm_generated_tokens_total", model="slow_llm")
    assert after - before < number * 3  # three words an answer


def kill_step(deployment: Deployment, model: str) -> None:
    """Kill the process of a model."""
    triton = psutil.Process(deployment.endpoints.pids["triton"])
    living = [c for c in triton.children() if c.status() != psutil.STATUS_ZOMBIE]
    # A stub's command line has the path of its model.
    [stub] = [c for c in living if any(f"/{model}/" in a for a in c.cmdline())]
    stub.kill()
    assert eventually(lambda: stub.status() == psutil.STATUS_ZOMBIE)  # nobody asks for its status


def test_killed_steps_cost_the_examples_and_a_killed_router_the_answer_not_the_server(
    deployment: Deployment, caller: Caller
) -> None:
    """Nobody watches the processes yet, so that they stay away."""
    row = {"text_input": "hello", "llm": "small_llm", "stream": True}
    for step in ("retriever", "embedder", "tokenizer"):
        kill_step(deployment, step)
        answer = caller.ask("hello", llm="small_llm")
        assert text(answer, "text_output") == "small says so"
        assert text(answer, "degraded") == "no examples: retrieval unavailable"
        assert text(caller.ask("hello"), "degraded") == "no examples: retrieval unavailable"
    kill_step(deployment, "router")
    assert refusal(lambda: caller.ask("hello")).startswith(
        "StatusCode.UNAVAILABLE [unavailable] router: "
    )
    with streams(deployment.endpoints) as (client, arrived):
        client.async_stream_infer("echolm_stream", inputs(grpcclient, [row]))
        _, error = arrived.get(timeout=30)
        assert "[unavailable] router: " in str(error)
    assert caller.client.is_server_live()


@pytest.fixture(scope="module")
def scores() -> Iterator[float]:
    """A score for each rating, by which it is known again."""
    return different_scores()


@pytest.fixture(scope="module")
def supervisor(deployment: Deployment) -> Supervisor:
    """What mends the deployment from here on: the tests before break what must stay broken."""
    deployment.server.supervise()
    supervisor, caller = deployment.server._supervisor, Caller(deployment.endpoints)
    assert supervisor is not None

    def is_whole() -> bool:
        try:
            answer = caller.ask("hello", llm="small_llm", cache_control="no-store")
        except InferenceServerException:
            return False
        return text(answer, "degraded") == "" and is_ready(deployment)

    assert eventually(is_whole, 60)
    return supervisor


MODELS = ("retriever", "router", "tokenizer", "embedder", "small_llm", "remote_llm", "feedback")


@pytest.mark.parametrize(
    ("model", "signum"),
    [
        *((model, signal.SIGKILL) for model in (*MODELS, "example_manager")),
        *((model, signal.SIGSTOP) for model in ("router", "small_llm")),
    ],
)
def test_a_model_whose_process_is_gone_serves_again_without_a_hand(
    deployment: Deployment,
    supervisor: Supervisor,
    caller: Caller,
    scores: Iterator[float],
    model: str,
    signum: int,
) -> None:
    before = count(deployment, "echolm_model_restarts_total", model=model)
    traffic = Traffic(deployment.endpoints.grpc_url, 3, scores)
    try:
        assert eventually(lambda: traffic.acknowledged)
        for process in supervisor._models[model].processes:
            process.send_signal(signum)
        # Readiness says so at once, and later that it is mended.
        assert eventually(lambda: not is_ready(deployment))
        if model == "small_llm":
            assert count(deployment, "echolm_llm_ready", model=model) == 0
        assert eventually(lambda: is_ready(deployment), 60)
        assert count(deployment, "echolm_model_restarts_total", model=model) == before + 1
        # Nothing goes without a part of it.
        answer = caller.ask("hello", llm="small_llm")
        assert (text(answer, "llm"), text(answer, "degraded")) == ("small_llm", "")
        assert caller.rate(answer["feedback_token"].item(), score=1.0)
    finally:
        traffic.stop()
    assert not traffic.outcomes["late"]
    assert traffic.acknowledged <= logged_scores(deployment.endpoints.data_dir)


def is_ready(deployment: Deployment) -> bool:
    """What probes see."""
    try:
        with urllib.request.urlopen(deployment.endpoints.ready_url, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        assert error.code == 503
        return False


def test_a_triton_that_is_gone_is_back_without_a_hand(
    deployment: Deployment, supervisor: Supervisor, caller: Caller, scores: Iterator[float]
) -> None:
    traffic = Traffic(deployment.endpoints.grpc_url, 3, scores)
    try:
        assert eventually(lambda: traffic.acknowledged)
        os.kill(deployment.server._triton.process.pid() or 0, signal.SIGKILL)  # type: ignore[union-attr]
        assert eventually(lambda: not is_ready(deployment))
        assert eventually(lambda: is_ready(deployment), 120)
        assert text(caller.ask("hello", llm="small_llm"), "text_output") == "small says so"
    finally:
        traffic.stop()
    assert traffic.acknowledged <= logged_scores(deployment.endpoints.data_dir)
