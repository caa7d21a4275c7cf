"""Our LLM model in a real Triton, over gRPC: one server with the OpenVINO engine.

The model is the repository's ``small_llm``; ``TEST_LLM_DIR`` names another OpenVINO folder.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpcclient
from echolm.errors import InvalidRequestError
from echolm.llm.triton_client import remote_error
from echolm.serving.triton_server import TritonOptions, TritonServer
from tritonclient.utils import InferenceServerException

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(os.environ.get("TEST_LLM_DIR", ROOT / "model_repository/local/small_llm/1/openvino"))
PROMPT = "List the files of the folder that are older than 7 days and sort them by size."
LONG = 400
# Nearly every token is as likely as any other, so that an end comes seldom by itself.
RAMBLING: dict[str, Any] = {"sampling_param_temperature": 50.0}
TYPES = {
    "streaming": "BOOL",
    "stop": "BOOL",
    "sampling_param_best_of": "INT32",
    "sampling_param_max_tokens": "INT32",
    "sampling_param_top_k": "INT32",
    "sampling_param_temperature": "FP32",
    "sampling_param_top_p": "FP32",
    "sampling_param_seed": "UINT64",
    "sampling_param_stop": "BYTES",
    "sampling_param_exclude_input_from_output": "BOOL",
    "return_finish_reason": "BOOL",
    "return_stop_reason": "BOOL",
    "return_cumulative_logprob": "BOOL",
}
NUMPY = {"BOOL": np.bool_, "INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64}

# Calls the LLM as the router does: over BLS, iterating its responses.
CALLER = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils

def tensor(name, values, kind):
    return pb_utils.Tensor(name, np.array(values, dtype=kind))

class TritonPythonModel:
    def execute(self, requests):
        return [self.one(request) for request in requests]

    def call(self, inputs, request_id):
        request = pb_utils.InferenceRequest(
            model_name="small_llm", request_id=request_id, requested_output_names=[], inputs=inputs
        )
        out = []
        for response in request.exec(decoupled=True):
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            tensors = {t.name(): t.as_numpy() for t in response.output_tensors()}
            out.append(tensors["text_output"][0].decode() if tensors else "(empty)")
        return out

    def one(self, request):
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        mode = pb_utils.get_input_tensor_by_name(request, "mode").as_numpy()[0].decode()
        inputs = [
            pb_utils.Tensor("text_input", text),
            tensor("sampling_param_exclude_input_from_output", [True], np.bool_),
            tensor("sampling_param_max_tokens", [400 if mode == "stop" else 16], np.int32),
            tensor("sampling_param_temperature", [50.0 if mode == "stop" else 0.0], np.float32),
            tensor("streaming", [mode != "unary"], np.bool_),
        ]
        if mode == "stop":
            stop = [pb_utils.Tensor("text_input", text), tensor("stop", [True], np.bool_)]
            threading.Timer(0.1, self.call, (stop, "bls-1")).start()
        pieces = self.call(inputs, "bls-1")
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("pieces", np.array([p.encode() for p in pieces], dtype=np.object_))]
        )
"""
CALLER_CONFIG = """
backend: "python"
max_batch_size: 0
input [
  { name: "text" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "mode" data_type: TYPE_STRING dims: [ 1 ] }
]
output [ { name: "pieces" data_type: TYPE_STRING dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""

pytestmark = pytest.mark.skipif(
    not (MODEL / "openvino_model.xml").is_file(), reason=f"no OpenVINO model in {MODEL}"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Answer:
    """All responses to one request."""

    texts: list[str] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    error: InferenceServerException | None = None
    responses: int = 0
    first_s: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def last(self, name: str) -> Any:
        value = self.outputs[-1][name].reshape(-1)[0]
        return value.decode() if isinstance(value, bytes) else value


class Client:
    """One gRPC stream; answers by request id.

    An error in a stream is a message without a status. Triton would give it one if asked for
    by the ``triton_grpc_error`` header, and sometimes crash (2.51), so nobody asks.
    """

    def __init__(self, url: str, model: str = "small_llm") -> None:
        self._client = grpcclient.InferenceServerClient(url)
        self._model = model
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: self._queue.put((result, error)))

    def send(self, request_id: str, text: bytes | str = PROMPT, **inputs: Any) -> None:
        inputs.setdefault("sampling_param_max_tokens", 16)
        inputs.setdefault("sampling_param_exclude_input_from_output", True)
        raw = text if isinstance(text, bytes) else text.encode()
        tensors = [tensor("text_input", "BYTES", [raw])]
        tensors += [tensor(name, TYPES[name], value) for name, value in inputs.items()]
        self._client.async_stream_infer(
            self._model, tensors, request_id=request_id, enable_empty_final_response=True
        )

    def collect(self, count: int, timeout_s: float = 120.0) -> dict[str, Answer]:
        """Wait until ``count`` requests are complete."""
        answers: dict[str, Answer] = {}
        deadline = time.monotonic() + timeout_s
        start = time.monotonic()
        while count:
            result, error = self._queue.get(timeout=max(0.01, deadline - time.monotonic()))
            if error is not None:
                answers.setdefault(
                    getattr(error, "request_id", "") or "error", Answer()
                ).error = error
                count -= 1
                continue
            response = result.get_response()
            answer = answers.setdefault(response.id, Answer())
            answer.first_s = answer.first_s or time.monotonic() - start
            if response.outputs:
                answer.responses += 1
                outputs = {out.name: result.as_numpy(out.name) for out in response.outputs}
                answer.outputs.append(outputs)
                answer.texts.append(outputs["text_output"].reshape(-1)[0].decode())
            if response.parameters["triton_final_response"].bool_param:
                count -= 1
        return answers

    def wait_begun(self) -> None:
        """Until there is a response, which ``collect`` gets later."""
        deadline = time.monotonic() + 60
        while self._queue.empty():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def ask(self, text: bytes | str = PROMPT, **inputs: Any) -> Answer:
        self.send("1", text, **inputs)
        (answer,) = self.collect(1).values()
        return answer

    def drop(self) -> None:
        """Go away without waiting."""
        self._client.stop_stream(cancel_requests=True)

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


def tensor(name: str, datatype: str, value: Any) -> grpcclient.InferInput:
    values = value if isinstance(value, list) else [value]
    if datatype == "BYTES":
        array = np.empty(len(values), dtype=np.object_)
        array[:] = values
    else:
        array = np.array(values, dtype=NUMPY[datatype])
    result = grpcclient.InferInput(name, list(array.shape), datatype)
    result.set_data_from_numpy(array)
    return result


@dataclass(frozen=True)
class Server:
    http: str
    grpc: str
    metrics: str
    triton: TritonServer

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self.metrics, timeout=5) as page:
            found = re.search(rf'^{name}{{model="small_llm"}} (\S+)', page.read().decode(), re.M)
        return float(found[1]) if found else 0.0

    def wait_metric(self, name: str, value: float, timeout_s: float) -> float:
        """Seconds until the metric had this value."""
        start = time.monotonic()
        while self.metric(name) != value:
            assert time.monotonic() - start < timeout_s, f"{name} is {self.metric(name)}"
            time.sleep(0.02)
        return time.monotonic() - start

    def wait_busy(self) -> None:
        """Until the engine works on something."""
        deadline = time.monotonic() + 10
        while self.metric("echolm_llm_in_flight") == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def workers(self) -> list[psutil.Process]:
        """The engine processes of this server; others may run beside it."""
        return [
            child
            for child in psutil.Process(self.triton.process.guard_pid).children(recursive=True)
            if any(part.startswith("--factory=echolm.engines.") for part in child.cmdline())
        ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("llm")
    model = directory / "repository" / "small_llm"
    shutil.copytree(
        ROOT / "model_repository/local/small_llm", model, ignore=shutil.ignore_patterns("openvino")
    )
    # Many in flight at once with room for long prompts.
    config = (model / "config.pbtxt").read_text()
    assert 'string_value: "openvino" } }' in config
    place = f'key: "model_dir" value: {{ string_value: "{MODEL.resolve()}"'
    config = config.replace('key: "model_dir" value: { string_value: "openvino"', place)
    (model / "config.pbtxt").write_text(config)
    caller = directory / "repository" / "caller"
    (caller / "1").mkdir(parents=True)
    (caller / "1" / "model.py").write_text(CALLER)
    (caller / "config.pbtxt").write_text(CALLER_CONFIG)
    http, grpc, metrics = free_port(), free_port(), free_port()
    triton = TritonServer(
        TritonOptions(
            model_repositories=(model.parent,),
            run_dir=directory / "run",
            log_file=directory / "triton.log",
            http_port=http,
            grpc_port=grpc,
            metrics_port=metrics,
        )
    )
    triton.start()
    try:
        triton.wait_ready(60)
        yield Server(
            f"http://127.0.0.1:{http}",
            f"127.0.0.1:{grpc}",
            f"http://127.0.0.1:{metrics}/metrics",
            triton,
        )
    finally:
        triton.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.grpc)
    yield client
    client.close()


def test_one_response_without_streaming_and_pieces_with_it(client: Client) -> None:
    unary = client.ask(sampling_param_max_tokens=24)
    stream = client.ask(sampling_param_max_tokens=24, streaming=True)
    assert unary.responses == 1
    assert stream.responses > 1
    assert unary.text
    assert stream.text == unary.text
    assert unary.last("num_output_tokens") == stream.last("num_output_tokens") <= 24
    assert unary.last("num_input_tokens") == stream.last("num_input_tokens") > 0


def test_prompt_is_echoed_unless_excluded(client: Client) -> None:
    plain = client.ask()
    for streaming in (False, True):
        echoed = client.ask(streaming=streaming, sampling_param_exclude_input_from_output=False)
        assert echoed.text == PROMPT + plain.text


def test_reasons_and_logprob_come_only_when_asked_for(client: Client) -> None:
    plain = client.ask()
    assert set(plain.outputs[0]) == {"text_output", "num_input_tokens", "num_output_tokens"}
    full = client.ask(
        sampling_param_max_tokens=1,
        return_finish_reason=True,
        return_stop_reason=True,
        return_cumulative_logprob=True,
    )
    assert full.last("finish_reason") in ("length", "stop")
    assert full.last("stop_reason") == ""
    assert full.last("cumulative_logprob") < 0


def test_same_seed_gives_the_same_text_alone_and_in_a_batch(client: Client) -> None:
    sampling: dict[str, Any] = {"sampling_param_temperature": 1.0, "sampling_param_max_tokens": 20}
    alone = client.ask(sampling_param_seed=7, **sampling)
    for i in range(16):
        client.send(f"s{i}", sampling_param_seed=7 if i == 9 else i + 100, **sampling)
    batch = client.collect(16)
    assert batch["s9"].text == alone.text


def test_no_seed_gives_different_texts(client: Client) -> None:
    sampling: dict[str, Any] = {
        "sampling_param_temperature": 2.0,
        "sampling_param_max_tokens": 20,
    }
    for i in range(8):
        client.send(str(i), **sampling)
    assert len({answer.text for answer in client.collect(8).values()}) > 1


def test_stop_word_ends_the_answer_and_is_not_in_it(client: Client) -> None:
    whole = client.ask(sampling_param_max_tokens=24).text
    middle = len(whole) // 2
    word = whole[middle : middle + 3]
    expected = whole[: whole.index(word)]
    for streaming in (False, True):
        answer = client.ask(
            streaming=streaming,
            sampling_param_max_tokens=24,
            sampling_param_stop=[b"never in it", word.encode()],
            return_finish_reason=True,
            return_stop_reason=True,
        )
        assert answer.text == expected
        assert answer.last("finish_reason") == "stop"
        assert answer.last("stop_reason") == word


def test_64_at_once_are_all_answered_as_alone(client: Client) -> None:
    alone = client.ask(f"{PROMPT} 3").text
    for i in range(64):
        client.send(f"c{i}", f"{PROMPT} {i}", streaming=i % 2 == 0)
    answers = client.collect(64)
    assert len(answers) == 64
    assert all(answer.error is None for answer in answers.values())
    assert all(answer.last("num_output_tokens") > 0 for answer in answers.values())
    assert answers["c3"].text == alone


@pytest.mark.parametrize(
    ("text", "inputs", "message"),
    [
        (b"", {}, "text_input: expected text that is not empty"),
        (b"\xff\xfe", {}, "text_input: expected UTF-8 text, got byte 0xff"),
        (PROMPT, {"sampling_param_max_tokens": 0}, "expected an integer > 0, got 0"),
        (PROMPT, {"sampling_param_max_tokens": 1_000_000}, "and 1000000 max_tokens"),
        ("a long prompt " * 5000, {}, "of prompt and 16 max_tokens"),
        (PROMPT, {"sampling_param_temperature": -1.0}, "got -1.0"),
        (
            PROMPT,
            {"sampling_param_temperature": float("nan")},
            "a finite number of at least 0, got nan",
        ),
        (PROMPT, {"sampling_param_top_p": 0.0}, "a number above 0 and at most 1, got 0.0"),
        (PROMPT, {"sampling_param_top_k": -1}, "got -1"),
        (PROMPT, {"sampling_param_best_of": 2}, "expected 1"),
    ],
)
def test_bad_request_is_known_as_invalid_and_fails_alone(
    client: Client, server: Server, text: bytes | str, inputs: dict[str, Any], message: str
) -> None:
    client.send("good", streaming=True)
    other = Client(server.grpc)
    other.send("bad", text, **inputs)
    (refused,) = other.collect(1).values()
    assert refused.error is not None
    assert message in refused.error.message()
    # The router, which gets no status either, takes it for the caller's fault.
    assert isinstance(remote_error("small_llm", refused.error.message()), InvalidRequestError)
    answer = client.collect(1)["good"]
    assert answer.error is None
    assert answer.text
    other.close()


def test_wrong_shape_and_wrong_type_are_refused(client: Client, server: Server) -> None:
    wrong_shape = client.ask(sampling_param_top_p=[0.5, 0.5])
    assert wrong_shape.error is not None
    assert "sampling_param_top_p" in wrong_shape.error.message()
    texts = client.ask(sampling_param_top_p=0.5)
    assert texts.error is None
    body = b'{"text_input": "hello", "sampling_param_max_tokens": 0}'
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.http}/v2/models/small_llm/generate", body, timeout=10)
    assert refused.value.code == 400
    assert b"expected an integer > 0, got 0" in refused.value.read()


def test_generate_endpoint_answers_once(server: Server) -> None:
    body = b'{"text_input": "hello", "sampling_param_max_tokens": 3}'
    url = f"{server.http}/v2/models/small_llm/generate"
    with urllib.request.urlopen(url, body, timeout=30) as page:
        answer = json.load(page)
    assert answer["text_output"].startswith("hello")
    assert answer["num_output_tokens"] <= 3


def test_client_that_goes_away_frees_the_engine(server: Server) -> None:
    server.wait_metric("echolm_llm_in_flight", 0, 30)
    cancelled = server.metric("echolm_llm_cancelled_total")
    leaver = Client(server.grpc)
    for i in range(32):  # Many, so that none has ended by itself before.
        leaver.send(
            f"l{i}",
            f"{i} {PROMPT}",
            sampling_param_max_tokens=LONG,
            streaming=True,
            **RAMBLING,
        )
    server.wait_busy()
    leaver.drop()
    seconds = server.wait_metric("echolm_llm_in_flight", 0, 10)
    gone = server.metric("echolm_llm_cancelled_total") - cancelled
    print(f"\n{gone:g} of 32 cancelled, engine free after {seconds:.3f} s")
    assert seconds < 1.0
    assert gone > 0


def test_stop_cancels_the_request_of_the_same_id(client: Client, server: Server) -> None:
    other = Client(server.grpc)
    for _ in range(5):  # The victim may end by itself before, if seldom.
        client.send(
            "victim",
            sampling_param_max_tokens=LONG,
            streaming=True,
            return_finish_reason=True,
            **RAMBLING,
        )
        client.wait_begun()
        for i in range(31):
            client.send(str(i), sampling_param_max_tokens=60, **RAMBLING)
        other.send("victim", b"", stop=True)
        (stopped,) = other.collect(1).values()
        assert stopped.error is None
        assert stopped.responses == 0
        answers = client.collect(32)
        victim = answers.pop("victim")
        assert all(answer.error is None for answer in answers.values())
        if victim.last("finish_reason") == "cancelled":
            break
    assert victim.last("finish_reason") == "cancelled"
    assert victim.last("num_output_tokens") < LONG
    other.close()


def test_stop_of_an_unknown_id_is_harmless(client: Client) -> None:
    client.send("nobody", b"", stop=True)
    assert client.collect(1)["nobody"].error is None


def call_over_bls(server: Server, mode: bytes) -> list[str]:
    client = grpcclient.InferenceServerClient(server.grpc)
    inputs = [tensor("text", "BYTES", [PROMPT.encode()]), tensor("mode", "BYTES", [mode])]
    pieces = client.infer("caller", inputs, client_timeout=60).as_numpy("pieces")
    client.close()
    return [piece.decode() for piece in pieces]


def test_bls_caller_gets_the_same_text(client: Client, server: Server) -> None:
    expected = client.ask().text
    assert call_over_bls(server, b"unary") == [expected]
    pieces = call_over_bls(server, b"stream")
    assert len(pieces) > 1
    assert "".join(pieces) == expected


def test_bls_caller_can_stop_its_request(client: Client, server: Server) -> None:
    server.wait_metric("echolm_llm_in_flight", 0, 30)
    before = server.metric("echolm_llm_cancelled_total")
    for _ in range(5):  # It may end by itself before, if seldom.
        for i in range(31):
            client.send(str(i), sampling_param_max_tokens=100, **RAMBLING)
        assert len(call_over_bls(server, b"stop")) < LONG
        client.collect(31)
        server.wait_metric("echolm_llm_in_flight", 0, 30)
        cancelled = server.metric("echolm_llm_cancelled_total") - before
        if cancelled:
            break
    assert cancelled == 1


def test_tokens_are_counted(client: Client, server: Server) -> None:
    server.wait_metric("echolm_llm_in_flight", 0, 30)
    names = ("echolm_llm_prompt_tokens_total", "echolm_llm_generated_tokens_total")
    before = [server.metric(name) for name in names]
    answer = client.ask()
    expected = [answer.last("num_input_tokens"), answer.last("num_output_tokens")]
    time.sleep(0.3)
    after = [server.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == expected


def test_killed_engine_process_fails_requests_and_comes_back(
    client: Client, server: Server
) -> None:
    (worker,) = server.workers()
    server.wait_metric("echolm_llm_in_flight", 0, 30)  # of the test before
    worker.suspend()  # None shall end before it is killed.
    for i in range(32):
        client.send(str(i), sampling_param_max_tokens=LONG, **RAMBLING)
    server.wait_metric("echolm_llm_in_flight", 32, 30)
    worker.kill()
    answers = client.collect(32).values()
    failed = [answer.error.message() for answer in answers if answer.error]
    assert failed
    assert all("failed; try again" in message for message in failed), failed
    deadline = time.monotonic() + 30
    while (answer := client.ask()).error is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert answer.text


def test_server_that_stops_leaves_no_engine_process(server: Server) -> None:
    """The last test: it stops the server."""
    workers = server.workers()
    assert workers
    server.triton.stop()
    _, left = psutil.wait_procs(workers, timeout=5)
    assert left == []
