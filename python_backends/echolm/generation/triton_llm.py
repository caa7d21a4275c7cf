"""An LLM served by Triton, called over gRPC.

The router calls its LLMs over gRPC and not over BLS: in Triton 2.51 a decoupled BLS call
crashes its process about once in a thousand at sixteen in flight, blocks a thread for each
generation and cannot be cancelled. A gRPC stream costs the same, is cancelled by dropping
it, and lets an LLM live on another Triton server (``llms.url``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from echolm import contracts
from echolm.errors import ContextLengthError, InvalidRequestError, UnavailableError
from echolm.generation.llm import Completion, LLMClient, OnText, Sampling
from echolm.settings import LLMSettings, Settings

_INPUTS = {tensor.name: tensor for tensor in contracts.LLM_API_INPUTS}
_NUMPY_TYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "FP32": np.float32,
    "INT32": np.int32,
    "UINT64": np.uint64,
}
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off grows to two minutes, in which an LLM that is back looks down.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class Channels:
    """One gRPC channel per server, opened in the event loop that first asks for it."""

    def __init__(self) -> None:
        self._stubs: dict[str, Any] = {}

    def stub(self, url: str) -> Any:
        """The inference service at ``host:port``."""
        if url not in self._stubs:
            channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
            self._stubs[url] = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return self._stubs[url]


class LLMAPIClient:
    """An LLM that speaks TensorRT-LLM's LLM-API contract: decoupled, no batch dimension."""

    def __init__(self, channels: Channels, url: str, model: str) -> None:
        self._channels = channels
        self._url = url
        self._model = model

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_text: OnText | None
    ) -> Completion:
        request = self._request(request_id, prompt, sampling, streaming=on_text is not None)
        pieces: list[str] = []
        finish_reason = ""
        counts = {tensor.name: -1 for tensor in contracts.TOKEN_COUNTS}
        # Leaving this block by an exception, a cancellation included, ends the stream, and
        # with it the generation.
        call = self._channels.stub(self._url).ModelStreamInfer(_once(request))
        try:
            async for message in call:
                if message.error_message:
                    raise stream_error(self._model, message.error_message)
                out = _outputs(message.infer_response)
                if "text_output" not in out:
                    continue  # the empty response that closes the stream
                piece = _text(out["text_output"])
                pieces.append(piece)
                if on_text is not None and piece:
                    on_text(piece)
                if "finish_reason" in out:
                    finish_reason = _text(out["finish_reason"]) or finish_reason
                for name in counts:
                    if name in out:
                        counts[name] = int.from_bytes(out[name][:4], "little", signed=True)
        except grpc.RpcError as error:
            raise _error(self._model, error) from error
        finally:
            if not call.done():
                call.cancel()
        if not pieces:
            raise UnavailableError(f"{self._model}: ended without an answer")
        return Completion("".join(pieces), finish_reason, **counts)

    def _request(
        self, request_id: str, prompt: str, sampling: Sampling, streaming: bool
    ) -> service_pb2.ModelInferRequest:
        values: dict[str, Sequence[Any]] = {
            "text_input": [prompt],
            "streaming": [streaming],
            "sampling_param_max_tokens": [sampling.max_tokens],
            "sampling_param_temperature": [sampling.temperature],
            "sampling_param_top_p": [sampling.top_p],
            "sampling_param_top_k": [sampling.top_k],
            "sampling_param_exclude_input_from_output": [True],
            "return_finish_reason": [True],
        }
        if sampling.seed is not None:
            values["sampling_param_seed"] = [sampling.seed]
        if sampling.stop:
            values["sampling_param_stop"] = sampling.stop
        request = service_pb2.ModelInferRequest(model_name=self._model, id=request_id)
        for name, value in values.items():
            datatype = _INPUTS[name].datatype
            request.inputs.add(name=name, datatype=datatype, shape=[len(value)])
            request.raw_input_contents.append(_raw(datatype, value))
        return request


def build_llm_clients(settings: Settings) -> dict[str, LLMClient]:
    """A client for each configured LLM, by its name."""
    channels = Channels()

    def client(llm: LLMSettings) -> LLMClient:
        return _CONTRACTS[llm.contract](channels, llm.url or settings.grpc_url, llm.model)

    return {llm.name: client(llm) for llm in settings.llms}


_CONTRACTS = {"llmapi": LLMAPIClient}


async def _once(request: service_pb2.ModelInferRequest) -> Any:
    yield request


def _raw(datatype: str, values: Sequence[Any]) -> bytes:
    """Elements as Triton wants them: little-endian, text with its length in front."""
    if datatype == "BYTES":
        encoded = [value.encode("utf-8") for value in values]
        return b"".join(len(part).to_bytes(4, "little") + part for part in encoded)
    return np.asarray(values, dtype=_NUMPY_TYPES[datatype]).tobytes()


def _outputs(response: service_pb2.ModelInferResponse) -> dict[str, bytes]:
    """The raw contents of the response's tensors, by name."""
    return {
        output.name: raw
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def _text(raw: bytes) -> str:
    """The first element of a BYTES tensor; empty if it has none."""
    size = int.from_bytes(raw[:4], "little")
    return raw[4 : 4 + size].decode("utf-8", "replace")


def stream_error(model: str, message: str) -> Exception:
    """The error that a stream's message tells of.

    Triton gives streamed errors no status, unless asked for by the ``triton_grpc_error`` header,
    with which a failing request can crash the whole server (Triton 2.51). EchoLM's own messages
    say what was expected, so they are known by that.
    """
    if ": expected " in message:
        return (ContextLengthError if "context" in message else InvalidRequestError)(message)
    return UnavailableError(f"{model}: {message}")


def _error(model: str, error: grpc.RpcError) -> Exception:
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        kind = ContextLengthError if "context" in details else InvalidRequestError
        return kind(details)
    if error.code() is grpc.StatusCode.CANCELLED:
        return UnavailableError(f"{model}: generation was cancelled by the server")
    return UnavailableError(f"{model}: {details}")


__all__ = ["Channels", "LLMAPIClient", "build_llm_clients"]
