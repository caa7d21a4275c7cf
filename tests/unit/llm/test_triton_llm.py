"""LLMs over gRPC, against a server in this process that answers as each test says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import Certificate, authority, certified
from echolm import contracts
from echolm.errors import (
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    UnavailableError,
)
from echolm.internal_calls import PROOF, CallProofs
from echolm.llm.inflight_batcher import InflightBatcherClient
from echolm.llm.llmapi import LLMAPIClient
from echolm.llm.optional_inputs import optional_inputs
from echolm.llm.triton_client import Channels, TritonLLMClient, remote_error
from echolm.primitives import Completion, Piece, Sampling
from echolm.serving import preflight
from echolm.settings import LLMSettings, Settings, TritonSettings
from echolm.wiring.llms import build_llm_clients
from nvidia_llms import LLMAPI_INPUTS
from pydantic import SecretStr
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

Answer = Callable[[service_pb2.ModelInferRequest, Any], AsyncIterator[Any]]
INPUTS = {tensor.name: tensor for tensor in contracts.ALL_LLM_API_INPUTS}
ENSEMBLE = {tensor.name: tensor for tensor in contracts.INFLIGHT_BATCHER_INPUTS}
OUTPUTS = {t.name: t for t in (*contracts.ECHOLM_OUTPUTS, *contracts.llm("").outputs)}
NUMPY = {"BOOL": np.bool_, "FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64}
SAMPLING = Sampling(max_tokens=16)


def message(**outputs: str | int | float | list[float]) -> service_pb2.ModelStreamInferResponse:
    """One response; without outputs, the empty one that closes a stream."""
    made = service_pb2.ModelStreamInferResponse()
    response = made.infer_response
    response.model_name = "small_llm"
    for name, value in outputs.items():
        datatype = OUTPUTS[name].datatype
        values = value if isinstance(value, list) else [value]
        response.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        raw = (
            serialize_byte_tensor(np.array([str(value).encode()], dtype=np.object_)).item()
            if datatype == "BYTES"
            else np.array(values, dtype=NUMPY[datatype]).tobytes()
        )
        response.raw_output_contents.append(raw)
    if not outputs:
        response.parameters["triton_final_response"].bool_param = True
    return made


def saying(*messages: Any) -> Answer:
    """Answers with these messages, whatever was asked."""

    async def answer(request: service_pb2.ModelInferRequest, context: Any) -> AsyncIterator[Any]:
        for one in messages:
            yield one

    return answer


def failing(code: grpc.StatusCode, details: str, *before: Any) -> Answer:
    """Ends the stream with a status, after some messages."""

    async def answer(request: service_pb2.ModelInferRequest, context: Any) -> AsyncIterator[Any]:
        for one in before:
            yield one
        await context.abort(code, details)

    return answer


def configuration(
    inputs: Sequence[str], outputs: Sequence[str], decoupled: bool = True, batch: int = 0
) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(max_batch_size=batch)
    config.model_transaction_policy.decoupled = decoupled
    for name in inputs:
        config.input.add(name=name)
    for name in outputs:
        config.output.add(name=name)
    return config


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Keeps what came and how each stream ended."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.config = configuration(list(INPUTS), list(OUTPUTS))
        self.config_requests = 0
        self.ready = {"small_llm"}
        self.requests: list[service_pb2.ModelInferRequest] = []
        self.metadata: list[Mapping[str, str]] = []
        self.config_metadata: list[Mapping[str, str]] = []
        self.peers: set[str] = set()
        self.begun = asyncio.Event()
        self.cancelled: list[str] = []

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.config_requests += 1
        self.config_metadata.append(dict(context.invocation_metadata()))
        return service_pb2.ModelConfigResponse(config=self.config)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self.ready)

    async def ModelInfer(  # noqa: N802
        self, request: service_pb2.ModelInferRequest, context: Any
    ) -> service_pb2.ModelInferResponse:
        self.requests.append(request)
        try:
            async for one in self.answer(request, context):
                return one.infer_response
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise
        raise AssertionError("no answer")

    async def ModelStreamInfer(  # noqa: N802  (the service's name for it)
        self, requests: AsyncIterator[service_pb2.ModelInferRequest], context: Any
    ) -> AsyncIterator[Any]:
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())
        async for request in requests:
            self.requests.append(request)
            try:
                async for one in self.answer(request, context):
                    yield one
                    self.begun.set()
            # The second, if it was being sent when the stream was cancelled.
            except (asyncio.CancelledError, GeneratorExit):
                self.cancelled.append(request.id)
                raise


@dataclass
class Server:
    """A Triton of which only the stream works."""

    servicer: Servicer
    credentials: Any = None
    port: int = 0
    _running: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        options = (("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))
        server = grpc.aio.server(options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self.servicer, server)
        if self.credentials is None:
            self.port = server.add_insecure_port(self.url)
        else:
            self.port = server.add_secure_port(self.url, self.credentials)
        await server.start()
        self._running.append(server)

    async def stop(self) -> None:
        while self._running:
            await self._running.pop().stop(None)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server(Servicer(saying(message(text_output="ok"), message())))
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def llm(server: Server) -> LLMAPIClient:
    return LLMAPIClient(Channels(), server.url, "small_llm")


async def ask(llm: LLMAPIClient, sampling: Sampling = SAMPLING, prompt: str = "hi") -> Completion:
    return await llm.generate("r-1", prompt, sampling, None)


async def until(true: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "did not become true in time"
        await asyncio.sleep(0.01)


def sent(request: service_pb2.ModelInferRequest, batched: bool = False) -> dict[str, list[Any]]:
    """The values of a request's tensors; checks each against the contract on the way."""
    values = {}
    specs = ENSEMBLE if batched else INPUTS
    assert len(request.inputs) == len(request.raw_input_contents)
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        spec = specs[tensor.name]
        assert tensor.datatype == spec.datatype, tensor.name
        dims = (1, *spec.dims) if batched else spec.dims
        assert len(tensor.shape) == len(dims), tensor.name
        for size, dim in zip(tensor.shape, dims, strict=True):
            assert dim in (-1, size), tensor.name
        if tensor.datatype == "BYTES":
            values[tensor.name] = [text.decode() for text in deserialize_bytes_tensor(raw)]
        else:
            values[tensor.name] = np.frombuffer(raw, NUMPY[tensor.datatype]).tolist()
        assert len(values[tensor.name]) == int(np.prod(tensor.shape)), tensor.name
    return values


# What is sent


async def test_a_request_has_the_contracts_tensors(server: Server, llm: LLMAPIClient) -> None:
    sampling = Sampling(7, 0.5, 0.25, 3, seed=2**64 - 1, stop=("end", "«ün»"))
    await llm.generate("the id", "tell me — ünïcode", sampling, None)
    [request] = server.servicer.requests
    assert (request.model_name, request.id) == ("small_llm", "the id")
    assert sent(request) == {
        "text_input": ["tell me — ünïcode"],
        "streaming": [False],
        "sampling_param_max_tokens": [7],
        "sampling_param_temperature": [0.5],
        "sampling_param_top_p": [0.25],
        "sampling_param_top_k": [3],
        "sampling_param_seed": [2**64 - 1],
        "sampling_param_stop": ["end", "«ün»"],
        "sampling_param_exclude_input_from_output": [True],
        "return_finish_reason": [True],
        "sampling_param_add_special_tokens": [False],
    }
    required = {tensor.name for tensor in contracts.LLM_API_INPUTS if not tensor.optional}
    assert required <= set(sent(request))


@pytest.mark.parametrize("kind", [LLMAPIClient, InflightBatcherClient])
async def test_a_prompts_bos_is_taken_off_where_the_servers_tokenizer_adds_it(
    server: Server, kind: type[TritonLLMClient]
) -> None:
    names = [name for name in kind.inputs if name != "sampling_param_add_special_tokens"]
    server.servicer.config = configuration(names, ["text_output"])
    for added_bos in ("<s>", ""):
        llm = kind(Channels(), server.url, "nvidias", added_bos=added_bos)
        await llm.generate("r", "<s><s>hi", SAMPLING, None)
    texts = [request.raw_input_contents[0][4:] for request in server.servicer.requests]
    assert texts == [b"<s>hi", b"<s><s>hi"]


async def test_our_tokenizer_is_told_that_the_prompt_has_its_bos(server: Server) -> None:
    llm = LLMAPIClient(Channels(), server.url, "small_llm", added_bos="<s>")
    await llm.generate("r", "<s>hi", SAMPLING, None)
    [request] = server.servicer.requests
    assert sent(request)["text_input"] == ["<s>hi"]
    assert sent(request)["sampling_param_add_special_tokens"] == [False]


async def test_seed_and_stop_words_are_sent_only_when_given(
    server: Server, llm: LLMAPIClient
) -> None:
    await ask(llm)
    await ask(llm, Sampling(16, seed=0))
    await ask(llm, Sampling(16, stop=("x",)))
    options = {"sampling_param_seed", "sampling_param_stop"}
    given = [options & set(sent(request)) for request in server.servicer.requests]
    assert given == [set(), {"sampling_param_seed"}, {"sampling_param_stop"}]


async def test_streaming_is_asked_for_by_a_listener_only(server: Server, llm: LLMAPIClient) -> None:
    await ask(llm)
    await llm.generate("r-2", "hi", SAMPLING, lambda piece: None)
    assert [sent(request)["streaming"] for request in server.servicer.requests] == [[False], [True]]


async def test_only_our_own_llm_is_told_how_long_its_pieces_gather(server: Server) -> None:
    def take(piece: str) -> None: ...

    ours = LLMAPIClient(Channels(), server.url, "small_llm", 40.0)
    await ours.generate("streamed", "hi", SAMPLING, take)
    await ours.generate("whole", "hi", SAMPLING, None)
    await LLMAPIClient(Channels(), server.url, "small_llm").generate("0", "hi", SAMPLING, take)
    server.servicer.config = configuration(list(INPUTS), ["text_output", "finish_reason"])
    theirs = LLMAPIClient(Channels(), server.url, "small_llm", 40.0)
    await theirs.generate("theirs", "hi", SAMPLING, take)
    given = {r.id: dict(r.parameters) for r in server.servicer.requests}
    assert given.pop("streamed")["stream_interval_ms"].double_param == 40.0
    assert given == {"whole": {}, "0": {}, "theirs": {}}


async def test_calls_of_our_own_llm_are_signed_and_of_no_other(server: Server) -> None:
    proofs = CallProofs("key")
    await LLMAPIClient(Channels(), server.url, "small_llm", proofs=proofs).generate(
        "ours", "hi", SAMPLING, None
    )
    server.servicer.config = configuration(list(INPUTS), ["text_output", "finish_reason"])
    theirs = LLMAPIClient(Channels(), server.url, "small_llm", proofs=proofs)
    await theirs.generate("theirs", "hi", SAMPLING, None)
    ours, other = server.servicer.requests
    proof = ours.parameters[PROOF].string_param
    proofs.check("small_llm", {"text_input": b"\2\0\0\0hi"}, proof)
    with pytest.raises(InvalidRequestError):
        proofs.check("large_llm", {"text_input": b"\2\0\0\0hi"}, proof)
    assert dict(other.parameters) == {}


async def test_who_may_see_the_configuration_is_shown_the_admin_key(server: Server) -> None:
    await LLMAPIClient(Channels(), server.url, "small_llm").signature()
    await LLMAPIClient(Channels(), server.url, "small_llm", admin_key="k").signature()
    header = "triton-grpc-protocol-echolm-admin-key"
    assert [shown.get(header) for shown in server.servicer.config_metadata] == [None, "k"]


def test_each_server_gets_its_own_admin_key() -> None:
    here = LLMSettings(name="a", cost=1.0, takes_examples=False, chat_template="plain")
    there = here.model_copy(update={"name": "b", "url": "t:1", "api_key": SecretStr("theirs")})
    foreign = here.model_copy(update={"name": "c", "url": "u:1"})
    triton = TritonSettings(admin_key=SecretStr("ours" * 4))
    clients = build_llm_clients(Settings(llms=(here, there, foreign), triton=triton))
    keys = {name: dict(client._admin) for name, client in clients.items()}  # type: ignore[attr-defined]
    header = "triton-grpc-protocol-echolm-admin-key"
    assert keys == {"a": {header: "ours" * 4}, "b": {header: "theirs"}, "c": {}}


async def test_triton_is_not_asked_for_what_crashes_it(server: Server, llm: LLMAPIClient) -> None:
    await ask(llm)
    assert "triton_grpc_error" not in server.servicer.metadata[0]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[invalid_request] top_p: expected a number above 0, got 2", InvalidRequestError),
        (
            "[context_length] text_input: expected a prompt within the context of 2048, got 3000",
            ContextLengthError,
        ),
        ("[unavailable] engine dummy: told to fail", UnavailableError),
        ("[unavailable] engine: expected a context, got maximum input length", UnavailableError),
        ("[internal] internal error: ValueError; see the server's log", UnavailableError),
        ("[cancelled] the client went away", UnavailableError),
    ],
)
def test_streamed_errors_are_known_by_their_code(message: str, kind: type[Exception]) -> None:
    error = remote_error("small_llm", message)
    assert type(error) is kind
    assert str(error).endswith(message.partition("] ")[2])
    assert "[" not in str(error)


# What is answered


async def test_a_whole_answer_with_its_counts(server: Server, llm: LLMAPIClient) -> None:
    server.servicer.answer = saying(
        message(
            text_output="ünïcode ✓",
            finish_reason="stop",
            cumulative_logprob=-1.5,
            num_input_tokens=12,
            num_output_tokens=70_000,
        ),
        message(),
    )
    assert await ask(llm) == Completion("ünïcode ✓", "stop", 12, 70_000)


async def test_our_llms_responses_have_the_log_probabilities_of_their_own_tokens(
    server: Server, llm: LLMAPIClient
) -> None:
    server.servicer.answer = saying(
        message(text_output="a", cumulative_logprob=-1.0, output_log_probs=[-1.0]),
        message(text_output=" b", cumulative_logprob=-1.5, output_log_probs=[-0.25, -0.25]),
        message(),
    )
    done = await llm.generate("r", "hi", Sampling(9, logprobs=True), lambda piece: None)
    assert (done.cumulative_logprob, done.token_logprobs) == (-1.5, (-1.0, -0.25, -0.25))


async def test_tokens_come_with_the_pieces_that_bring_them(
    server: Server, llm: LLMAPIClient
) -> None:
    first, second = ({"token": t, "logprob": -0.5} for t in "ab")
    server.servicer.answer = saying(
        message(text_output="a", logprobs=json.dumps([first])),
        message(text_output="", logprobs=json.dumps([second])),
        message(text_output="b"),
        message(),
    )
    pieces: list[Piece] = []
    done = await llm.generate("r", "hi", SAMPLING, pieces.append)
    assert pieces == [
        Piece("a", logprobs=(first,)),
        Piece("", logprobs=(second,)),
        Piece("b"),
    ]
    assert (done.text, done.logprobs) == ("ab", (first, second))


async def test_tokens_that_are_no_json_are_no_answer(server: Server, llm: LLMAPIClient) -> None:
    server.servicer.answer = saying(message(text_output="a", logprobs="3"), message())
    with pytest.raises(UnavailableError, match="logprobs: expected a JSON array"):
        await llm.generate("r", "hi", SAMPLING, None)


async def test_what_our_llm_is_asked_for_has_its_contracts_names(
    server: Server, llm: LLMAPIClient
) -> None:
    server.servicer.answer = saying(message(text_output="a"), message())
    await llm.generate("r", "hi", replace(EVERYTHING, embedding_bias=()), None)
    given = sent(server.servicer.requests[-1])
    expected = {
        "sampling_param_repetition_penalty": [1.5],
        "sampling_param_presence_penalty": [0.5],
        "sampling_param_frequency_penalty": [0.25],
        "sampling_param_min_tokens": [2],
        "sampling_param_bad_words": ["no", "never"],
        "guided_decoding_guide_type": ["regex"],
        "guided_decoding_guide": ["[a-z]+"],
        "return_log_probs": [True],
        "return_cumulative_logprob": [True],
    }
    assert {name: given[name] for name in expected} == expected


async def test_what_a_model_does_not_declare_is_refused_and_known_from_then_on(
    server: Server, llm: LLMAPIClient
) -> None:
    nvidias = [name for name in LLMAPI_INPUTS if name in INPUTS]
    server.servicer.config = configuration(nvidias, ["text_output"])
    sampling = Sampling(16, frequency_penalty=0.5, repetition_penalty=1.5, bad_words=("no",))
    assert not llm.lacks(sampling)  # as far as is known
    with pytest.raises(
        InvalidRequestError, match=r"repetition_penalty: expected nothing.*got 1\.5"
    ):
        await llm.generate("r", "hi", sampling, None)
    with pytest.raises(InvalidRequestError, match="leave out repetition_penalty"):
        await llm.call("hi", sampling, False)
    assert llm.lacks(sampling) == ["repetition_penalty", "bad_words"]
    assert not llm.lacks(Sampling(16, frequency_penalty=0.5))
    assert not server.servicer.requests


async def test_a_streamed_answer_comes_piece_by_piece(server: Server, llm: LLMAPIClient) -> None:
    go_on = asyncio.Event()

    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        yield message(text_output="one ", finish_reason="")
        await go_on.wait()
        yield message(text_output="two", finish_reason="")
        yield message(
            text_output="", finish_reason="length", num_input_tokens=3, num_output_tokens=2
        )
        yield message()

    server.servicer.answer = answer
    pieces: list[str] = []
    task = asyncio.create_task(
        llm.generate("r", "hi", SAMPLING, lambda piece: pieces.append(piece.text))
    )
    await until(lambda: pieces == ["one "])  # before the rest is generated
    go_on.set()
    assert await task == Completion("one two", "length", 3, 2)
    assert pieces == ["one ", "two"]  # and none that is empty


async def test_an_llm_that_does_not_count_tokens_or_give_reasons(
    server: Server, llm: LLMAPIClient
) -> None:
    server.servicer.answer = saying(message(text_output="a"), message(text_output="b"), message())
    assert await ask(llm) == Completion("ab", "", -1, -1)


async def test_an_empty_answer_is_an_answer(server: Server, llm: LLMAPIClient) -> None:
    server.servicer.answer = saying(message(text_output="", finish_reason="stop"), message())
    pieces: list[str] = []
    done = await llm.generate("r", "hi", SAMPLING, lambda piece: pieces.append(piece.text))
    assert (done.text, done.finish_reason, pieces) == ("", "stop", [])


@pytest.mark.parametrize("messages", [(), (message(),)], ids=["nothing", "only the closing one"])
async def test_a_stream_without_an_answer_is_a_failure(
    server: Server, llm: LLMAPIClient, messages: Sequence[Any]
) -> None:
    server.servicer.answer = saying(*messages)
    with pytest.raises(UnavailableError, match="small_llm: ended without an answer"):
        await ask(llm)


async def test_messages_may_be_larger_than_grpcs_default(server: Server, llm: LLMAPIClient) -> None:
    long = "x" * 5_000_000
    server.servicer.answer = saying(message(text_output=long))
    assert (await ask(llm, prompt=long)).text == long
    assert sent(server.servicer.requests[0])["text_input"] == [long]


# Errors


@pytest.mark.parametrize(
    ("code", "details", "expected", "shown"),
    [
        ("INVALID_ARGUMENT", "top_p: expected 0 to 1, got 2", InvalidRequestError, "^top_p: "),
        ("INVALID_ARGUMENT", "[invalid_request] top_p: expected", InvalidRequestError, "^top_p: "),
        (
            "INVALID_ARGUMENT",
            "[context_length] prompt longer than the context",
            ContextLengthError,
            "^prompt long",
        ),
        ("UNAVAILABLE", "stub process died", UnavailableError, "^small_llm: stub process died"),
        ("UNAVAILABLE", "[unavailable] it is closed", UnavailableError, "^small_llm: it is closed"),
        ("INTERNAL", "engine failed", UnavailableError, "^small_llm: engine failed"),
        ("NOT_FOUND", "no such model", UnavailableError, "^small_llm: no such model"),
        ("RESOURCE_EXHAUSTED", "", UnavailableError, "^small_llm: RESOURCE_EXHAUSTED"),
        (
            "CANCELLED",
            "bye",
            UnavailableError,
            "^small_llm: generation was cancelled by the server",
        ),
    ],
)
@pytest.mark.parametrize("pieces", [0, 1])
async def test_a_status_becomes_an_error_of_our_own(
    server: Server,
    llm: LLMAPIClient,
    code: str,
    details: str,
    expected: type[Exception],
    shown: str,
    pieces: int,
) -> None:
    before = [message(text_output="half")] * pieces
    server.servicer.answer = failing(grpc.StatusCode[code], details, *before)
    got: list[str] = []
    with pytest.raises(expected, match=shown) as caught:
        await llm.generate("r", "hi", SAMPLING, lambda piece: got.append(piece.text))
    assert type(caught.value) is expected
    assert got == ["half"] * pieces


async def test_an_error_inside_the_stream_is_a_failure(server: Server, llm: LLMAPIClient) -> None:
    error = service_pb2.ModelStreamInferResponse(error_message="engine failed")
    server.servicer.answer = saying(message(text_output="half"), error)
    with pytest.raises(UnavailableError, match="small_llm: engine failed"):
        await ask(llm)


async def test_a_failed_request_leaves_the_next_one_alone(
    server: Server, llm: LLMAPIClient
) -> None:
    server.servicer.answer = failing(grpc.StatusCode.INTERNAL, "engine failed")
    with pytest.raises(UnavailableError):
        await ask(llm)
    server.servicer.answer = saying(message(text_output="well again"))
    assert (await ask(llm)).text == "well again"


async def test_without_a_server_a_request_fails_soon(server: Server, llm: LLMAPIClient) -> None:
    await server.stop()
    with pytest.raises(UnavailableError, match=r"^small_llm: "):
        await asyncio.wait_for(ask(llm), 10)


async def test_a_server_that_goes_ends_the_requests_it_had(
    server: Server, llm: LLMAPIClient
) -> None:
    server.servicer.answer = endless
    asked = [asyncio.create_task(ask(llm)) for _ in range(5)]
    await until(lambda: len(server.servicer.requests) == 5)
    await server.stop()
    ended = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    assert [type(end) for end in ended] == [UnavailableError] * 5


async def test_a_server_that_comes_back_is_used_again(server: Server, llm: LLMAPIClient) -> None:
    assert (await ask(llm)).text == "ok"
    await server.stop()
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await ask(llm)
    await server.start()  # at the same address
    started = time.monotonic()
    while True:
        try:
            answer = await ask(llm)
            break
        except UnavailableError:
            assert time.monotonic() - started < 10
            await asyncio.sleep(0.05)
    assert answer.text == "ok"


# Cancellation


async def endless(request: service_pb2.ModelInferRequest, context: Any) -> AsyncIterator[Any]:
    while True:
        yield message(text_output="and ")
        await asyncio.sleep(0.01)


async def silent(request: service_pb2.ModelInferRequest, context: Any) -> AsyncIterator[Any]:
    await asyncio.sleep(60)
    yield message(text_output="late")


@pytest.mark.parametrize("answer", [endless, silent])
async def test_cancelling_the_task_ends_the_stream_at_the_server(
    server: Server, llm: LLMAPIClient, answer: Answer
) -> None:
    server.servicer.answer = answer
    task = asyncio.create_task(llm.generate("leaver", "hi", SAMPLING, lambda piece: None))
    await until(lambda: server.servicer.requests)
    if answer is endless:
        await server.servicer.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.servicer.cancelled == ["leaver"])


async def test_a_listener_that_fails_ends_the_stream_at_the_server(
    server: Server, llm: LLMAPIClient
) -> None:
    def listen(piece: str) -> None:
        raise ValueError("the client is gone")

    server.servicer.answer = endless
    with pytest.raises(ValueError, match="the client is gone"):
        await llm.generate("leaver", "hi", SAMPLING, listen)
    await until(lambda: server.servicer.cancelled == ["leaver"])


async def test_others_go_on_when_one_is_cancelled(server: Server, llm: LLMAPIClient) -> None:
    release = asyncio.Event()

    async def answer(request: service_pb2.ModelInferRequest, context: Any) -> AsyncIterator[Any]:
        await release.wait()
        yield message(text_output=request.id)

    server.servicer.answer = answer
    tasks = [asyncio.create_task(llm.generate(f"r-{n}", "hi", SAMPLING, None)) for n in range(3)]
    await until(lambda: len(server.servicer.requests) == 3)
    tasks[1].cancel()
    await until(lambda: server.servicer.cancelled == ["r-1"])
    release.set()
    assert [(await tasks[n]).text for n in (0, 2)] == ["r-0", "r-2"]


# Channels


async def test_all_requests_to_a_server_share_one_connection(server: Server) -> None:
    async def answer(request: service_pb2.ModelInferRequest, context: Any) -> AsyncIterator[Any]:
        yield message(text_output=f"{request.model_name} {sent(request)['text_input'][0]}")

    server.servicer.answer = answer
    channels = Channels()
    assert channels.stub(server.url) is channels.stub(server.url)
    assert channels.stub(server.url) is not channels.stub("127.0.0.1:1")
    llms = [LLMAPIClient(channels, server.url, name) for name in ("small_llm", "large_llm")]
    answers = await asyncio.gather(
        *(llms[n % 2].generate(f"r-{n}", f"prompt {n}", SAMPLING, None) for n in range(100))
    )
    assert [answer.text for answer in answers] == [
        f"{('small_llm', 'large_llm')[n % 2]} prompt {n}" for n in range(100)
    ]
    assert len(server.servicer.peers) == 1


def test_channels_open_nothing_before_they_are_asked() -> None:
    """They are made while no event loop runs; a bad address shows when it is called."""
    llms = build_llm_clients(Settings(grpc_url="nowhere:1"))
    assert set(llms) == {"small_llm", "large_llm"}


async def test_each_configured_llm_is_called_by_its_model_at_its_address(server: Server) -> None:
    other = Server(Servicer(saying(message(text_output="elsewhere"))))
    await other.start()
    settings = Settings(
        grpc_url=server.url,
        llms=(
            LLMSettings(chat_template="echolm", name="small_llm", cost=0.1, takes_examples=True),
            LLMSettings(
                chat_template="echolm",
                name="big",
                triton_model="llama",
                url=other.url,
                cost=1.0,
                takes_examples=False,
            ),
        ),
    )
    try:
        llms = build_llm_clients(settings)
        answers = [(await llms[n].generate("r", "hi", SAMPLING, None)).text for n in llms]
    finally:
        await other.stop()
    assert (list(llms), answers) == (["small_llm", "big"], ["ok", "elsewhere"])
    assert [request.model_name for request in server.servicer.requests] == ["small_llm"]
    assert [request.model_name for request in other.servicer.requests] == ["llama"]


async def test_an_llm_is_checked_where_it_is(server: Server, llm: LLMAPIClient) -> None:
    await llm.check()
    server.servicer.ready.clear()
    with pytest.raises(UnavailableError, match=f"small_llm: not ready at {server.url}"):
        await llm.check()
    await server.stop()
    with pytest.raises(UnavailableError, match="small_llm: "):
        await llm.check()


# TLS


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return authority(tmp_path_factory.mktemp("tls"))


async def asked_over_tls(ca: Certificate, clients: bool, **files: Any) -> str:
    """What a Triton with TLS answers, which may want a certificate of its clients."""
    own = certified(ca, "server")
    pair = [(own.key.read_bytes(), own.certificate.read_bytes())]
    roots = ca.certificate.read_bytes()
    credentials = grpc.ssl_server_credentials(pair, roots if clients else None, clients)
    there = Server(Servicer(saying(message(text_output="safe"), message())), credentials)
    await there.start()
    llm = LLMSettings(
        chat_template="echolm",
        name="small_llm",
        url=f"grpcs://{there.url}",
        cost=1.0,
        takes_examples=False,
        **files,
    )
    try:
        [client] = build_llm_clients(Settings(llms=(llm,))).values()
        return (await client.generate("r", "hi", SAMPLING, None)).text
    finally:
        await there.stop()


async def test_a_triton_is_checked_with_the_configured_authority(
    ca: Certificate, tmp_path: Path
) -> None:
    assert await asked_over_tls(ca, False, tls_ca=ca.certificate) == "safe"
    for files in ({}, {"tls_ca": authority(tmp_path, "another").certificate}):
        with pytest.raises(UnavailableError, match="small_llm: "):
            await asked_over_tls(ca, False, **files)


async def test_a_triton_may_want_a_certificate(ca: Certificate) -> None:
    own = certified(ca, "client")
    files = {"tls_ca": ca.certificate, "tls_certificate": own.certificate, "tls_key": own.key}
    assert await asked_over_tls(ca, True, **files) == "safe"
    with pytest.raises(UnavailableError, match="small_llm: "):
        await asked_over_tls(ca, True, tls_ca=ca.certificate)


def test_certificates_that_cannot_be_used_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("no PEM")
    llm = LLMSettings(
        name="a", url="grpcs://t:1", tls_ca=tmp_path / "ca", cost=1.0, takes_examples=False
    )
    with pytest.raises(ConfigurationError, match=r"LLM a: llms\.tls_ca: expected certificates in"):
        build_llm_clients(Settings(llms=(llm,)))
    with pytest.raises(ConfigurationError, match=r"LLM a: llms\.tls_ca"):
        preflight.check_llm_servers(Settings(llms=(llm,)))


# What the model's configuration says


async def test_the_configuration_is_read_once_and_again_after_a_failure(
    server: Server, llm: LLMAPIClient
) -> None:
    for _ in range(3):
        await ask(llm)
    assert server.servicer.config_requests == 1
    server.servicer.answer = failing(grpc.StatusCode.UNAVAILABLE, "reloading")
    with pytest.raises(UnavailableError):
        await ask(llm)
    server.servicer.config = configuration(list(INPUTS), list(OUTPUTS), decoupled=False)
    server.servicer.answer = saying(message(text_output="as a whole"))
    pieces: list[str] = []
    assert (
        await llm.generate("r", "hi", SAMPLING, lambda piece: pieces.append(piece.text))
    ).text == "as a whole"
    assert (pieces, server.servicer.config_requests) == (["as a whole"], 2)
    assert sent(server.servicer.requests[-1])["streaming"] == [False]


async def test_a_refused_request_does_not_read_it_again(server: Server, llm: LLMAPIClient) -> None:
    server.servicer.answer = failing(grpc.StatusCode.INVALID_ARGUMENT, "no")
    for _ in range(2):
        with pytest.raises(InvalidRequestError):
            await ask(llm)
    assert server.servicer.config_requests == 1


async def test_a_model_of_another_contract_is_told(server: Server) -> None:
    ensemble = InflightBatcherClient(Channels(), server.url, "small_llm")
    with pytest.raises(UnavailableError, match=r"got no max_tokens; correct llms\.contract"):
        await ensemble.generate("r", "hi", SAMPLING, None)
    assert server.servicer.requests == []


async def test_inputs_that_a_release_does_not_have_are_not_sent(server: Server) -> None:
    server.servicer.config = configuration(["text_input", "max_tokens"], ["text_output"], batch=4)
    ensemble = InflightBatcherClient(Channels(), server.url, "small_llm")
    await ensemble.generate("r", "hi", SAMPLING, None)
    [request] = server.servicer.requests
    assert {t.name: list(t.shape) for t in request.inputs} == {
        "text_input": [1, 1],
        "max_tokens": [1, 1],
    }


# NVIDIA's llmapi


@pytest.fixture
def nvidia(server: Server) -> LLMAPIClient:
    """A model without our token counts."""
    server.servicer.config = configuration(
        list(INPUTS), [t.name for t in contracts.LLM_API_OUTPUTS]
    )
    return LLMAPIClient(Channels(), server.url, "small_llm")


async def test_all_of_the_text_so_far_becomes_pieces(server: Server, nvidia: LLMAPIClient) -> None:
    server.servicer.answer = saying(
        message(text_output="a", finish_reason="None"),
        message(text_output="a a", finish_reason="None"),
        message(text_output="a a \ufffd", finish_reason="None"),
        message(text_output="a a é", finish_reason="None"),
        message(text_output="a a é\ufffd", finish_reason="length"),
    )
    pieces: list[str] = []
    done = await nvidia.generate("r", "hi", SAMPLING, lambda piece: pieces.append(piece.text))
    assert pieces == ["a", " a", " ", "é", "\ufffd"]
    assert done == Completion("a a é\ufffd", "length", -1, -1)


@pytest.mark.parametrize("streamed", [False, True])
async def test_stop_words_are_cut_here(
    server: Server, nvidia: LLMAPIClient, streamed: bool
) -> None:
    server.servicer.answer = saying(
        *(message(text_output=text, finish_reason="None") for text in ("x", "x EN", "x END y"))
    )
    pieces: list[str] = []
    sampling = Sampling(16, stop=("END",))
    done = await nvidia.generate(
        "r", "hi", sampling, (lambda piece: pieces.append(piece.text)) if streamed else None
    )
    assert (done.text, done.finish_reason) == ("x ", "stop")
    assert pieces == (["x", " "] if streamed else [])
    assert "sampling_param_stop" not in sent(server.servicer.requests[0])


async def test_a_stream_is_ended_at_the_stop_word(server: Server, nvidia: LLMAPIClient) -> None:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        text = "go END"
        while True:
            text += " and on"
            yield message(text_output=text)
            await asyncio.sleep(0.01)

    server.servicer.answer = answer
    done = await nvidia.generate("r", "hi", Sampling(16, stop=("END",)), lambda piece: None)
    assert (done.text, done.finish_reason) == ("go ", "stop")
    await until(lambda: server.servicer.cancelled == ["r"])


# The in-flight batching ensemble


@pytest.fixture
def ensemble(server: Server) -> InflightBatcherClient:
    names = [t.name for t in contracts.INFLIGHT_BATCHER_INPUTS]
    outputs = ["text_output", *(t.name for t in contracts.TOKEN_COUNTS)]
    server.servicer.config = configuration(names, outputs, batch=8)
    return InflightBatcherClient(Channels(), server.url, "ensemble")


async def test_counts_of_the_pieces_are_added_and_tell_how_it_ended(
    server: Server, ensemble: InflightBatcherClient
) -> None:
    server.servicer.answer = saying(
        message(text_output="a", num_input_tokens=5, num_output_tokens=1),
        message(text_output=" b c", num_input_tokens=5, num_output_tokens=2),
        message(),
    )
    for most, reason in ((4, "stop"), (3, "length")):
        pieces: list[str] = []
        done = await ensemble.generate(
            "r", "hi", Sampling(most), lambda piece, pieces=pieces: pieces.append(piece.text)
        )
        assert done == Completion("a b c", reason, 5, 3)
        assert pieces == ["a", " b c"]


EVERYTHING = Sampling(
    16,
    frequency_penalty=0.25,
    presence_penalty=0.5,
    repetition_penalty=1.5,
    min_tokens=2,
    bad_words=("no", "never"),
    embedding_bias=(("yes", 2.0), ("nay", -1.5)),
    guide_type="regex",
    guide="[a-z]+",
    logprobs=True,
)


async def test_all_that_was_asked_for_arrives_by_the_ensembles_names(
    server: Server, ensemble: InflightBatcherClient
) -> None:
    server.servicer.answer = saying(message(text_output="a"), message())
    await ensemble.generate("r", "hi", EVERYTHING, None)
    given = sent(server.servicer.requests[-1], batched=True)
    asked = {name: given[name] for name in optional_inputs(EVERYTHING)}
    assert asked == {
        "repetition_penalty": [1.5],
        "presence_penalty": [0.5],
        "frequency_penalty": [0.25],
        "min_tokens": [2],
        "bad_words": ["no", "never"],
        "embedding_bias_words": ["yes", "nay"],
        "embedding_bias_weights": [2.0, -1.5],
        "guided_decoding_guide_type": ["regex"],
        "guided_decoding_guide": ["[a-z]+"],
        "return_log_probs": [True],
    }


async def test_what_was_not_asked_for_is_not_sent(
    server: Server, ensemble: InflightBatcherClient
) -> None:
    server.servicer.answer = saying(message(text_output="a"), message())
    await ensemble.generate("r", "hi", SAMPLING, None)
    assert (
        not optional_inputs(EVERYTHING).keys()
        & sent(server.servicer.requests[-1], batched=True).keys()
    )


async def test_the_ensembles_responses_have_the_log_probabilities_of_all_tokens_so_far(
    server: Server, ensemble: InflightBatcherClient
) -> None:
    server.servicer.answer = saying(
        message(text_output="a", cum_log_probs=-1.0, output_log_probs=[-1.0]),
        message(text_output=" b", cum_log_probs=-1.5, output_log_probs=[-1.0, -0.5]),
        message(),
    )
    done = await ensemble.generate("r", "hi", Sampling(9, logprobs=True), lambda piece: None)
    assert (done.cumulative_logprob, done.token_logprobs) == (-1.5, (-1.0, -0.5))
    done = await ensemble.generate("r", "hi", Sampling(9), lambda piece: None)
    assert (done.cumulative_logprob, done.token_logprobs) == (None, ())


@pytest.mark.parametrize("decoupled", [False, True])
async def test_cancelling_the_task_ends_the_call_whatever_its_kind(
    server: Server, ensemble: InflightBatcherClient, decoupled: bool
) -> None:
    server.servicer.config.model_transaction_policy.decoupled = decoupled
    server.servicer.answer = silent
    task = asyncio.create_task(ensemble.generate("leaver", "hi", SAMPLING, None))
    await until(lambda: server.servicer.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.servicer.cancelled == ["leaver"])


@pytest.mark.parametrize(
    "details",
    [
        "Error generating request: The sum of prompt length (9.0), query length (0) should not "
        "exceed max_num_tokens (8)",
        "Prompt length (9000) exceeds maximum input length (8192)",
        "`default_max_tokens` (-152) must be greater than 0, `default_max_tokens` (-152) = "
        "max_seq_len (8192) - `splited_prompt_len` (8000) - `query_token_len` (344)",
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tensorrt_llms_words_for_a_prompt_that_does_not_fit(
    server: Server, ensemble: InflightBatcherClient, details: str, streamed: bool
) -> None:
    error = service_pb2.ModelStreamInferResponse(error_message=details)
    server.servicer.answer = (
        saying(error) if streamed else failing(grpc.StatusCode.INTERNAL, details)
    )
    server.servicer.config.model_transaction_policy.decoupled = streamed
    with pytest.raises(ContextLengthError, match="ensemble: "):
        await ensemble.generate("r", "hi", SAMPLING, None)
