"""An LLM served by Triton, called over gRPC.

It is not called over BLS: in Triton 2.51 a decoupled BLS call crashes its process about once in a
thousand at sixteen in flight, blocks a thread for each generation and cannot be cancelled. A gRPC
stream costs the same, is cancelled by dropping it, and lets an LLM live on another Triton server
(``llms.url``).

Each contract is a subclass of :class:`TritonLLMClient` in a file of its own; it names the tensors
of a request and reads those of a response.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import grpc
import numpy as np
import orjson
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from echolm.contracts import STREAM_INTERVAL_MS, Tensor
from echolm.engines.text import REPLACEMENT, StopWords
from echolm.errors import ContextLengthError, EchoError, UnavailableError, from_remote, parse
from echolm.internal_calls import ASKED, PROOF, CallProofs
from echolm.llm.optional_inputs import optional_inputs, refusal
from echolm.primitives import Completion, OnPiece, Piece, Sampling

ADMIN_HEADER = "echolm-admin-key"
"""Header in which Triton wants the key for its restricted protocols; gRPC's has a prefix."""
_GRPC_HEADER = f"triton-grpc-protocol-{ADMIN_HEADER}"

RawOutputs = Mapping[str, bytes]
"""Raw contents of a response's tensors, by name."""

_TOO_LONG = re.compile(
    r"max_(seq_len|input_len|num_tokens)|[Mm]aximum (input|sequence|context) length"
)
"""In messages of TensorRT-LLM about a prompt that does not fit, whose status is INTERNAL."""
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off grows to two minutes, in which an LLM that is back looks down.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Finds out about a server that went without a word. Triton forbids more than one in 300 s.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


_EMPTY = Piece()


class Channels:
    """One gRPC channel per server, opened in the event loop that first asks for it."""

    def __init__(self, credentials: grpc.ChannelCredentials | None = None) -> None:
        """
        Args:
            credentials: of TLS; None: without TLS.
        """
        self._credentials = credentials
        self._stubs: dict[str, Any] = {}

    def stub(self, url: str) -> Any:
        """The inference service at ``host:port``."""
        if url not in self._stubs:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
            else:
                channel = grpc.aio.secure_channel(url, self._credentials, options=_CHANNEL_OPTIONS)
            self._stubs[url] = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return self._stubs[url]


@dataclass(frozen=True)
class ModelSignature:
    """What a model's configuration says about how it is called; the tensors by their names.

    Attributes:
        decoupled: whether the model can answer in pieces.
        batched: whether its tensors begin with a batch dimension.
    """

    decoupled: bool
    batched: bool
    inputs: frozenset[str]
    outputs: frozenset[str]


@dataclass(frozen=True)
class Reading:
    """How the responses to a request are read.

    Attributes:
        stop: words to cut the text at, except for those that the server cuts at.
        cumulative: whether each response holds all of the text so far.
        counts_add: whether ``num_output_tokens`` counts the tokens of one response. Such a server
            does not say why an answer ends, which then follows from their sum.
        logprobs: whether log probabilities were asked for.
    """

    stop: Sequence[str] = ()
    cumulative: bool = False
    counts_add: bool = False
    logprobs: bool = False


@dataclass(frozen=True)
class EncodedInput:
    """One input of a request, as Triton takes it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes


@dataclass(frozen=True)
class LLMCall:
    """A request to an LLM model that somebody else sends.

    Attributes:
        gathers: whether the model takes the parameters ``STREAM_INTERVAL_MS`` and ``PROOF``.
    """

    model: str
    inputs: Sequence[EncodedInput]
    reading: Reading
    gathers: bool


class TritonLLMClient:
    """An LLM served by Triton. A subclass knows the names of one contract's tensors.

    The model's configuration is read from the server, since the same contract is served decoupled
    or not, and releases differ in their optional tensors. A model that is not decoupled answers in
    one piece.
    """

    contract: ClassVar[str]
    inputs: ClassVar[Mapping[str, Tensor]]

    def __init__(
        self,
        channels: Channels,
        url: str,
        model: str,
        stream_interval_ms: float = 0.0,
        added_bos: str = "",
        proofs: CallProofs | None = None,
        admin_key: str = "",
    ) -> None:
        """
        Args:
            proofs: signs calls of EchoLM's own LLM model.
            admin_key: of the server, if it restricts who may see a model's configuration.
            stream_interval_ms: time for which the LLM's pieces gather, if it can do that.
            added_bos: what a tokenizer that cannot be told otherwise puts in front of each prompt,
                and prompts begin with already.
        """
        self.added_bos, self._proofs = added_bos, proofs
        self._admin = ((_GRPC_HEADER, admin_key),) if admin_key else ()
        self._stream_interval_ms = stream_interval_ms
        self._channels = channels
        self._url = url
        self._model = model
        self._signature: ModelSignature | None = None

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        try:
            signature = await self.signature()
            streaming = signature.decoupled and on_piece is not None
            values = self._values(prompt, sampling, streaming, signature)
            reader = ResponseReader(sampling.max_tokens, self.reading(sampling, signature))
            request = service_pb2.ModelInferRequest(model_name=self._model, id=request_id)
            encoded = self._encoded(values, signature)
            for one in encoded:
                request.inputs.add(name=one.name, datatype=one.datatype, shape=one.shape)
                request.raw_input_contents.append(one.raw)
            if self.takes_parameters(signature):
                if streaming and self._stream_interval_ms:
                    request.parameters[STREAM_INTERVAL_MS].double_param = self._stream_interval_ms
                if self._proofs is not None:
                    asked = {one.name: one.raw for one in encoded if one.name in ASKED}
                    proof = self._proofs.sign(self._model, asked)
                    request.parameters[PROOF].string_param = proof
            await self._read(request, signature.decoupled, reader, on_piece)
        except UnavailableError:
            self.forget_signature()
            raise
        rest = reader.end()
        if on_piece is not None and rest:
            on_piece(Piece(rest))
        if not reader.begun:
            raise UnavailableError(f"{self._model}: ended without an answer")
        return reader.completion()

    async def call(self, prompt: str, sampling: Sampling, streaming: bool) -> LLMCall:
        """What the front door sends to the LLM of this server; raises as ``generate`` does.

        Args:
            streaming: whether pieces are wanted.
        """
        signature = await self.signature()
        values = self._values(prompt, sampling, streaming and signature.decoupled, signature)
        inputs = self._encoded(values, signature)
        gathers = self.takes_parameters(signature)
        return LLMCall(self._model, inputs, self.reading(sampling, signature), gathers)

    async def check(self) -> None:
        """See :class:`~echolm.llm.endpoint.ServedLLM`."""
        request = service_pb2.ModelReadyRequest(name=self._model)
        try:
            ready = (await self._channels.stub(self._url).ModelReady(request)).ready
        except grpc.RpcError as error:
            raise _failed_call(self._model, error) from error
        if not ready:
            raise UnavailableError(f"{self._model}: not ready at {self._url}")

    async def signature(self) -> ModelSignature:
        """The model's signature; the server is asked once. UnavailableError if it has none."""
        if self._signature is None:
            self._signature = await self._ask_signature()
        return self._signature

    def forget_signature(self) -> None:
        """The model has failed, and may come back with another signature."""
        self._signature = None

    @property
    def is_known(self) -> bool:
        """Whether the model's signature is."""
        return self._signature is not None

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        known = self.inputs.keys() if self._signature is None else self._signature.inputs
        return self._lacking(sampling, known)

    def _lacking(self, sampling: Sampling, known: Collection[str]) -> Sequence[str]:
        return [name for name in optional_inputs(sampling) if self.tensor_of(name) not in known]

    def _values(
        self, prompt: str, sampling: Sampling, streaming: bool, signature: ModelSignature
    ) -> dict[str, Sequence[Any]]:
        """All inputs; InvalidRequestError if the model cannot take one that was asked for."""
        if lacking := self._lacking(sampling, signature.inputs):
            raise refusal(sampling, lacking, f"{self._model} does not")
        asked = {self.tensor_of(k): v for k, v in optional_inputs(sampling).items()}
        return {**self.input_values(prompt, sampling, streaming, signature), **asked}

    def input_values(
        self, prompt: str, sampling: Sampling, streaming: bool, signature: ModelSignature
    ) -> dict[str, Sequence[Any]]:
        """The elements of each usual input, by its name.

        Args:
            streaming: whether the answer is wanted in pieces.
        """
        raise NotImplementedError

    def tensor_of(self, name: str) -> str:
        """What the contract calls an optional input of ``echolm``."""
        return name

    def reading(self, sampling: Sampling, signature: ModelSignature) -> Reading:
        """How the responses are read."""
        raise NotImplementedError

    def takes_parameters(self, signature: ModelSignature) -> bool:
        """Whether the model takes the parameters ``STREAM_INTERVAL_MS`` and ``PROOF``."""
        return False

    async def _ask_signature(self) -> ModelSignature:
        """The model's configuration; UnavailableError if it does not suit the contract."""
        request = service_pb2.ModelConfigRequest(name=self._model)
        try:
            stub = self._channels.stub(self._url)
            config = (await stub.ModelConfig(request, metadata=self._admin)).config
        except grpc.RpcError as error:
            raise _failed_call(self._model, error) from error
        inputs = frozenset(tensor.name for tensor in config.input)
        outputs = frozenset(tensor.name for tensor in config.output)
        missing = {name for name, t in self.inputs.items() if not t.optional} - inputs
        if missing:
            raise UnavailableError(
                f"{self._model}: expected the inputs of contract {self.contract}, got no "
                f"{', '.join(sorted(missing))}; correct llms.contract in the configuration"
            )
        decoupled = config.model_transaction_policy.decoupled
        return ModelSignature(decoupled, config.max_batch_size > 0, inputs, outputs)

    def _encoded(
        self, values: Mapping[str, Sequence[Any]], signature: ModelSignature
    ) -> list[EncodedInput]:
        batch = (1,) if signature.batched else ()
        encoded = []
        for name, value in values.items():
            if name in signature.inputs:
                datatype = self.inputs[name].datatype
                array = np.array(value, triton_to_np_dtype(datatype))
                text = datatype == "BYTES"
                raw = serialize_byte_tensor(array).item() if text else array.tobytes()
                encoded.append(EncodedInput(name, datatype, (*batch, len(value)), raw))
        return encoded

    async def _read(
        self,
        request: service_pb2.ModelInferRequest,
        decoupled: bool,
        reader: ResponseReader,
        on_piece: OnPiece | None,
    ) -> None:
        """Call the LLM and give its responses to the reader until it needs no more.

        An exception, a cancellation included, ends the call, and with it the generation.
        """

        def take(response: service_pb2.ModelInferResponse) -> None:
            piece = reader.take(_outputs(response))
            if on_piece is not None and piece != _EMPTY:
                on_piece(piece)

        stub = self._channels.stub(self._url)
        call = stub.ModelStreamInfer([request]) if decoupled else stub.ModelInfer(request)
        try:
            if not decoupled:
                take(await call)
                return
            async for message in call:
                if message.error_message:
                    raise remote_error(self._model, message.error_message)
                take(message.infer_response)
                if reader.stopped:
                    return
        except grpc.RpcError as error:
            raise _failed_call(self._model, error) from error
        finally:
            if not call.done():
                call.cancel()


class ResponseReader:
    """Reads one answer from its responses.

    Args:
        max_tokens: most new tokens that were asked for.

    Attributes:
        begun: whether any response held text, be it empty.
        finish_reason: see ``Completion``; empty as long as it is not known.
    """

    def __init__(self, max_tokens: int, reading: Reading) -> None:
        self.max_tokens = max_tokens
        self._stop = StopWords(reading.stop)
        self._reading = reading
        self._whole = ""
        self._pieces: list[str] = []
        self.begun = False
        self.finish_reason = ""
        self.num_input_tokens = self.num_output_tokens = -1
        self._logprob: float | None = None
        self._token_logprobs: list[float] = []
        self._tokens: tuple[Mapping[str, Any], ...] = ()

    @property
    def stopped(self) -> bool:
        """Whether a stop word was found, after which no more text is wanted."""
        return self._stop.matched is not None

    def take(self, outputs: RawOutputs) -> Piece:
        """What is new in a response; nothing in the one that closes the stream."""
        if "text_output" not in outputs:
            return _EMPTY
        self.begun = True
        if "num_input_tokens" in outputs:
            self.num_input_tokens = read_int(outputs["num_input_tokens"])
        if "num_output_tokens" in outputs:
            tokens = read_int(outputs["num_output_tokens"])
            before = max(self.num_output_tokens, 0) if self._reading.counts_add else 0
            self.num_output_tokens = before + tokens
        self._take_logprobs(outputs)
        reason = read_text(outputs.get("finish_reason", b""))
        # NVIDIA's llmapi sends Python's None as text as long as there is no reason.
        if reason not in ("", "None"):
            self.finish_reason = reason
        text = read_text(outputs["text_output"])
        if self._reading.cumulative:
            # An incomplete character becomes a whole one with the next token.
            taken, self._whole = len(self._whole.rstrip(REPLACEMENT)), text
            text = text.rstrip(REPLACEMENT)[taken:]
        said = _read_tokens(outputs.get("logprobs", b""))
        self._tokens += said
        return Piece(self._push(self._stop.push(text)), logprobs=said)

    def _take_logprobs(self, outputs: RawOutputs) -> None:
        """Our LLM model's responses have those of their own tokens, the ensemble's all so far.

        The probability of the whole answer is that of its tokens so far in both.
        """
        if not self._reading.logprobs:
            return
        if raw := outputs.get("cumulative_logprob", outputs.get("cum_log_probs")):
            self._logprob = float(np.frombuffer(raw, np.float32, 1)[0])
        if raw := outputs.get("output_log_probs"):
            before = [] if self._reading.counts_add else self._token_logprobs
            self._token_logprobs = [*before, *np.frombuffer(raw, np.float32).tolist()]

    def end(self) -> str:
        """The text that was held back; called when no more responses come."""
        if self.stopped:
            self.finish_reason = "stop"
            return ""
        if self._reading.counts_add and not self.finish_reason and self.num_output_tokens >= 0:
            full = self.num_output_tokens >= self.max_tokens
            self.finish_reason = "length" if full else "stop"
        rest = ""
        if self._reading.cumulative:
            rest = self._whole[len(self._whole.rstrip(REPLACEMENT)) :]
        return self._push(self._stop.push(rest) + self._stop.flush())

    def _push(self, text: str) -> str:
        self._pieces.append(text)
        return text

    def completion(self) -> Completion:
        """The whole answer; called after :meth:`end`."""
        text = "".join(self._pieces)
        counts = self.num_input_tokens, self.num_output_tokens
        logprobs = self._logprob, tuple(self._token_logprobs)
        return Completion(text, self.finish_reason, *counts, *logprobs, logprobs=self._tokens)


def sampling_values(sampling: Sampling) -> dict[str, Any]:
    """Temperature, top-k, top-p and seed in the form that TensorRT-LLM's engines accept."""
    if sampling.temperature == 0:
        greedy: dict[str, Any] = {"top_k": 1}
        return greedy if sampling.seed is None else {**greedy, "seed": sampling.seed}
    # Without a seed the engines take the same one for every request.
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    values = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
    return {**values, "top_k": sampling.top_k} if sampling.top_k else values


def _outputs(response: service_pb2.ModelInferResponse) -> RawOutputs:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: raw for output, raw in pairs}


def read_text(raw: bytes) -> str:
    """The first element of a BYTES tensor; empty if it has none."""
    size = int.from_bytes(raw[:4], "little")
    return raw[4 : 4 + size].decode("utf-8", "replace")


def _read_tokens(raw: bytes) -> tuple[Mapping[str, Any], ...]:
    """The JSON array in a BYTES tensor; UnavailableError if it is none."""
    if not raw:
        return ()
    try:
        return tuple(orjson.loads(raw[4:]))
    except (orjson.JSONDecodeError, TypeError) as error:
        raise UnavailableError("logprobs: expected a JSON array, got what is not") from error


def read_int(raw: bytes) -> int:
    """The first element of an INT32 tensor."""
    return int.from_bytes(raw[:4], "little", signed=True)


def remote_error(model: str, message: str, refused: bool = False) -> EchoError:
    """An LLM's error message as an exception.

    Args:
        refused: whether its status calls the request invalid.

    Our own models put its code in front (see :mod:`echolm.errors`); NVIDIA's are known by their
    words. Triton gives streamed errors no status, unless asked for it by the ``triton_grpc_error``
    header, with which a failing request can crash the whole server (Triton 2.51).
    """
    if parse(message)[0] is None and _TOO_LONG.search(message):
        return ContextLengthError(f"{model}: {message}")
    return from_remote(model, message, refused)


def _failed_call(model: str, error: grpc.RpcError) -> EchoError:
    if error.code() is grpc.StatusCode.CANCELLED:
        return UnavailableError(f"{model}: generation was cancelled by the server")
    refused = error.code() is grpc.StatusCode.INVALID_ARGUMENT
    return remote_error(model, error.details() or error.code().name, refused)
