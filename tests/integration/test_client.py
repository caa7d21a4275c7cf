"""The clients against a real Triton: EchoLM itself, and models that misbehave on request.

What EchoLM answers is tested with ``server``. Kinds of errors, cancellation and many streams at
once need a server that does as it is told: ``scripted`` has EchoLM's contract, and the text of
a request says what happens to it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from echolm.contracts import ECHOLM, ECHOLM_STREAM, FEEDBACK, ModelContract, Tensor
from echolm.serving import Endpoints, ServeOptions, running_server
from echolm.settings import Settings
from echolm_client import (
    Answer,
    AsyncClient,
    Cancelled,
    Client,
    EchoLMError,
    InvalidRequest,
    ServerError,
    Timeout,
    Unavailable,
)

pytestmark = pytest.mark.timeout(180)

PROTOCOLS = ("grpc", "http")
MINE: dict[str, Any] = {"tenant": "test-client", "max_tokens": 16}
REQUEST = "show the hidden files in the current directory"


def url_of(endpoints: Endpoints, protocol: str) -> str:
    return endpoints.grpc_url if protocol == "grpc" else endpoints.http_url


@pytest.fixture(params=PROTOCOLS)
def client(request: pytest.FixtureRequest, server: Endpoints) -> Iterator[Client]:
    url = url_of(server, request.param)
    with Client(url, metrics_url=server.metrics_url, timeout=60) as client:
        yield client


# EchoLM itself


def test_an_answer_is_complete(client: Client) -> None:
    assert client.is_ready()
    answer = client.generate(REQUEST, **MINE)
    assert answer.text
    assert answer.llm
    assert answer.feedback_token
    assert answer.finish_reason in ("stop", "length")
    assert answer.num_input_tokens > 0
    assert 0 < answer.num_output_tokens <= 16
    assert answer.latency_s > 0


def test_a_stream_has_the_text_and_the_facts_of_an_answer(client: Client) -> None:
    # Forced and without examples, so that nothing but streaming differs.
    options = {**MINE, "llm": "large_llm", "cache_control": "no-cache", "temperature": 0.0}
    whole = client.generate(REQUEST, **options)
    with client.stream(REQUEST, **options) as stream:
        pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.answer.text
    assert len(pieces) > 1
    assert stream.answer.llm == whole.llm == "large_llm"
    assert stream.answer.feedback_token
    for fact in ("finish_reason", "num_input_tokens", "num_output_tokens"):
        assert getattr(stream.answer, fact) == getattr(whole, fact)


def test_answers_are_rated_and_compared(client: Client) -> None:
    one, other = (client.generate(REQUEST, **MINE) for _ in range(2))
    assert client.rate(one, 0.9)
    assert client.rate(one.feedback_token, 0.4)
    assert client.prefer(other, over=one)


@pytest.mark.parametrize(
    ("text", "options"),
    [("", {}), ("x", {"max_tokens": 0}), ("x", {"temperature": -1.0}), ("x", {"llm": "nobody"})],
)
def test_what_the_server_refuses_is_an_invalid_request(
    client: Client, text: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="expected"):
        client.generate(text, **MINE | options)
    with pytest.raises(InvalidRequest, match="expected"):
        list(client.stream(text, **MINE | options))


def test_a_forged_token_or_a_score_out_of_range_is_refused(client: Client) -> None:
    answer = client.generate(REQUEST, **MINE)
    with pytest.raises(InvalidRequest):
        client.rate("forged", 1.0)
    with pytest.raises(InvalidRequest):
        client.rate(answer, 1.5)


def test_a_token_of_another_tenant_is_refused_to_who_names_his_own(client: Client) -> None:
    one, other = (client.generate(REQUEST, **MINE) for _ in range(2))
    tenant = MINE["tenant"]
    assert client.rate(one, 1.0, tenant=tenant)
    assert client.prefer(one, other, tenant=tenant)
    for call in (
        lambda: client.rate(one, 1.0, tenant="somebody"),
        lambda: client.prefer(one, other, tenant="somebody"),
    ):
        with pytest.raises(InvalidRequest, match="of the tenant given"):
            call()


def test_stats_count_requests(client: Client, server: Endpoints) -> None:
    before = client.stats().inferences.get("echolm", 0)
    client.generate(REQUEST, **MINE)
    assert eventually(lambda: client.stats().inferences.get("echolm", 0) > before)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_asyncio_many_at_once(server: Endpoints, protocol: str) -> None:
    async def streamed(client: AsyncClient) -> Answer:
        async with client.stream(REQUEST, **MINE) as stream:
            assert "".join([piece async for piece in stream]) == stream.answer.text
        return stream.answer

    async def use() -> list[Answer]:
        async with AsyncClient(
            url_of(server, protocol), metrics_url=server.metrics_url, timeout=60
        ) as client:
            assert await client.is_ready()
            answers = await asyncio.gather(
                *(client.generate(REQUEST, **MINE) for _ in range(8)),
                *(streamed(client) for _ in range(8)),
            )
            assert await client.rate(answers[0], 1.0)
            assert (await client.stats()).inferences
        return answers

    answers = asyncio.run(use())
    assert all(answer.text and answer.feedback_token for answer in answers)
    assert len({answer.feedback_token for answer in answers}) == len(answers)


def test_the_command_line_asks_rates_and_counts(
    server: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def echolm(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "echolm", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)

    url = f"--url={server.grpc_url}"
    asked = echolm("ask", REQUEST, url, "--max-tokens=16", "--tenant=test-client")
    assert (asked.returncode, asked.stderr.count("\n")) == (0, 1), asked.stderr
    assert asked.stdout.strip()
    rated = echolm("rate", "0.9")
    assert rated.returncode == 0, rated.stderr
    assert echolm("prefer", "last").returncode == 2
    assert echolm("ask", REQUEST, url, "--max-tokens=16", "--tenant=test-client").returncode == 0
    preferred = echolm("prefer", "last", "--tenant=test-client")
    assert (preferred.returncode, preferred.stdout) == (0, "preferred\n"), preferred.stderr
    stats = echolm("stats", url, f"--metrics-url={server.metrics_url}")
    assert stats.returncode == 0, stats.stderr
    assert "echolm" in stats.stdout
    refused = echolm("ask", "", url)
    assert refused.returncode == 2
    assert refused.stderr.startswith("echolm: ")


# A server that does as it is told

MODEL = """
import threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

STREAM = {stream}
LOG = {log!r}
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def tensor(name, value, dtype=object):
    return pb_utils.Tensor(name, np.array([[value]], dtype=dtype))


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request,)).start()

    def answer(self, request):
        sender = request.get_response_sender()
        text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0, 0].decode()
        words = text.split()
        for i, word in enumerate(words):
            if word.startswith("error:"):
                _, code, *coded = word.split(":")
                message = "".join(f"[{{code}}] " for code in coded) + "as told"
                error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
                return sender.send(pb_utils.InferenceResponse([], error=error), flags=FINAL)
            if word == "wait":
                time.sleep(0.1)
            if sender.is_cancelled():
                with open(LOG, "a") as log:
                    log.write(words[0] + "\\n")
                error = pb_utils.TritonError("gone", pb_utils.TritonError.CANCELLED)
                return sender.send(pb_utils.InferenceResponse([], error=error), flags=FINAL)
            if STREAM:
                sender.send(pb_utils.InferenceResponse(self.outputs(word + " ")))
        if STREAM:
            sender.send(flags=FINAL)
        else:
            sender.send(pb_utils.InferenceResponse(self.outputs(text)), flags=FINAL)

    def outputs(self, text):
        return [
            tensor("text_output", text.encode()),
            pb_utils.Tensor("example_ids", np.empty((1, 0), np.int64)),
            tensor("finish_reason", b"stop"),
        ]
"""


@dataclass(frozen=True)
class Scripted:
    """The server that does as it is told, and which requests it saw cancelled."""

    endpoints: Endpoints
    log: Path

    def saw_cancelled(self, name: str) -> bool:
        return self.log.exists() and name in self.log.read_text().split()


@pytest.fixture(scope="module")
def scripted(
    server_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scripted]:
    root = tmp_path_factory.mktemp("scripted")
    log = root / "cancelled"
    for contract in (ECHOLM, ECHOLM_STREAM, FEEDBACK):
        directory = root / "models" / contract.name / "1"
        directory.mkdir(parents=True)
        (directory.parent / "config.pbtxt").write_text(config(contract))
        model = MODEL.format(stream=contract.decoupled, log=str(log))
        (directory / "model.py").write_text(model)
    # An address for Milvus keeps the server from starting one that nobody would ask.
    retrieval = server_settings.retrieval.model_copy(update={"milvus_uri": "http://localhost:1"})
    settings = server_settings.model_copy(
        update={"data_dir": root / "data", "retrieval": retrieval}
    )
    options = ServeOptions(
        profile=None,
        model_repositories=(root / "models",),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    with running_server(settings, options) as endpoints:
        yield Scripted(endpoints, log)


def config(contract: ModelContract) -> str:
    def line(kind: str, tensor: Tensor) -> str:
        datatype = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
        optional = "optional: true" if tensor.optional else ""
        dims = list(tensor.dims)
        return f'{kind} [{{ name: "{tensor.name}" data_type: {datatype} dims: {dims} {optional} }}]'

    return "\n".join(
        [
            f'backend: "python"\nmax_batch_size: {contract.max_batch_size}',
            f"model_transaction_policy {{ decoupled: {str(contract.decoupled).lower()} }}",
            *(line("input", tensor) for tensor in contract.inputs),
            *(line("output", tensor) for tensor in contract.outputs),
        ]
    )


def eventually(holds: Callable[[], bool], timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def slow(name: str, waits: int = 100) -> str:
    """A request that takes 0.1 s a wait, known to the server's log by its first word."""
    return f"{name} {'wait ' * waits}".strip()


KINDS: list[tuple[str, type[EchoLMError]]] = [
    ("INVALID_ARG", InvalidRequest),
    ("UNAVAILABLE", Unavailable),
    ("INTERNAL", ServerError),
]


@pytest.mark.parametrize(("code", "kind"), [*KINDS, ("CANCELLED", Cancelled)])
def test_grpc_errors_have_their_kind_but_in_streams(
    scripted: Scripted, code: str, kind: type[EchoLMError]
) -> None:
    with Client(scripted.endpoints.grpc_url) as client:
        with pytest.raises(kind, match="as told"):
            client.generate(f"error:{code}")
        # A stream's error has no status; only the code that EchoLM puts before it tells its kind.
        with pytest.raises(ServerError, match="as told"):
            next(client.stream(f"error:{code}"))
        stream = client.stream(f"first error:{code}")
        assert next(stream) == "first "
        with pytest.raises(ServerError, match="as told"):
            next(stream)


@pytest.mark.parametrize(("code", "kind"), KINDS)
def test_http_errors_have_their_kind_but_in_streams(
    scripted: Scripted, code: str, kind: type[EchoLMError]
) -> None:
    with Client(scripted.endpoints.http_url) as client:
        with pytest.raises(kind, match="as told"):
            client.generate(f"error:{code}")
        with pytest.raises(ServerError, match="as told"):
            next(client.stream(f"error:{code}"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("invalid_request", InvalidRequest),
        ("context_length", InvalidRequest),
        ("unavailable", Unavailable),
        ("cancelled", Cancelled),
        ("configuration", ServerError),
        ("internal", ServerError),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_with_a_code_have_their_kind_everywhere(
    scripted: Scripted, protocol: str, code: str, kind: type[EchoLMError]
) -> None:
    with Client(url_of(scripted.endpoints, protocol)) as client:
        for call in (
            lambda: client.generate(f"error:INTERNAL:{code}"),
            lambda: list(client.stream(f"error:INTERNAL:{code}")),
            lambda: list(client.stream(f"first error:INTERNAL:{code}")),
        ):
            with pytest.raises(kind, match=r"^as told$") as raised:
                call()
            assert raised.value.code == code


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_leaving_a_stream_early_stops_the_server(scripted: Scripted, protocol: str) -> None:
    name = f"left-{protocol}"
    with Client(url_of(scripted.endpoints, protocol)) as client:
        with client.stream(slow(name)) as stream:
            assert next(stream) == f"{name} "
        assert eventually(lambda: scripted.saw_cancelled(name))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_timeout_is_kept_and_stops_the_server(scripted: Scripted, protocol: str) -> None:
    started = time.monotonic()
    with Client(url_of(scripted.endpoints, protocol), timeout=0.5) as client:
        with pytest.raises(Timeout):
            list(client.stream(slow(f"late-stream-{protocol}")))
        # Few waits over HTTP: Triton finishes a unary request even when its client has gone.
        with pytest.raises(Timeout):
            client.generate(slow(f"late-{protocol}", 100 if protocol == "grpc" else 15))
    assert time.monotonic() - started < 5
    assert eventually(lambda: scripted.saw_cancelled(f"late-stream-{protocol}"))
    if protocol == "grpc":
        assert eventually(lambda: scripted.saw_cancelled("late-grpc"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cancelling_a_task_stops_the_server(scripted: Scripted, protocol: str) -> None:
    async def stream(client: AsyncClient) -> None:
        async for _ in client.stream(slow(f"task-stream-{protocol}")):
            pass

    async def use() -> None:
        async with AsyncClient(url_of(scripted.endpoints, protocol)) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream(client), 0.5)
            if protocol == "grpc":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.generate(slow("task-grpc")), 0.5)
            left = client.stream(slow(f"task-left-{protocol}"))
            async with left:
                assert await left.__anext__()

    asyncio.run(use())
    names = [f"task-stream-{protocol}", f"task-left-{protocol}"]
    names += ["task-grpc"] if protocol == "grpc" else []
    for name in names:
        assert eventually(lambda name=name: scripted.saw_cancelled(name)), name  # type: ignore[misc]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_streams_of_one_client_run_side_by_side(scripted: Scripted, protocol: str) -> None:
    def read(i: int) -> str:
        with shared.stream(slow(f"n{i}", 5)) as stream:
            return "".join(stream)

    started = time.monotonic()
    with Client(url_of(scripted.endpoints, protocol)) as shared, ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(read, range(16)))
    assert texts == [slow(f"n{i}", 5) + " " for i in range(16)]
    assert time.monotonic() - started < 16 * 0.5 / 2


def test_one_client_is_shared_by_threads(scripted: Scripted) -> None:
    for protocol in PROTOCOLS:
        with Client(url_of(scripted.endpoints, protocol)) as client, ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda i: client.generate(f"n{i}").text, range(100)))
        assert texts == [f"n{i}" for i in range(100)]


def test_a_server_without_echolm_is_not_ready(scripted: Scripted) -> None:
    with Client(scripted.endpoints.grpc_url) as client:
        assert client.is_ready()
    with Client("localhost:1") as client:
        assert not client.is_ready(timeout=1)
