"""Triton behind the gateway, over one gRPC channel.

Tensors are packed by hand: an answer has a dozen of one element each, for which arrays and the
client library would take longer than all else that the gateway does.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from echolm import contracts
from echolm.errors import EchoError, UnavailableError, from_remote, parse
from echolm.gateway.backend import Final, Inputs, Piece

_DATATYPES = {t.name: t.datatype for t in (*contracts.ECHOLM.inputs, *contracts.FEEDBACK.inputs)}
_FORMATS = {"INT32": "<i", "UINT64": "<Q", "FP32": "<f", "BOOL": "<?"}
_READY_S = 2.0
_SHORT_S = 30.0
"""Deadline of what no LLM takes part in."""
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Triton is this machine's; a proxy of the environment does not lead there.
    ("grpc.enable_http_proxy", 0),
)


class TritonBackend:
    """The models of a Triton; made in the event loop that uses it.

    Args:
        url: ``host:port`` of gRPC.
    """

    def __init__(self, url: str) -> None:
        self._channel = grpc.aio.insecure_channel(url, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def answer(self, inputs: Inputs) -> Final:
        return _final(_outputs(await self._infer(_request(contracts.ECHOLM.name, inputs))))

    async def stream(self, inputs: Inputs) -> AsyncGenerator[Piece | Final, None]:
        name = contracts.ECHOLM_STREAM.name
        call = self._stub.ModelStreamInfer([_request(name, {**inputs, "stream": True})])
        try:
            while True:
                message = await call.read()
                if message is grpc.aio.EOF:
                    raise UnavailableError(f"{name}: the stream ended before the answer did")
                if message.error_message:
                    raise _of_text(name, message.error_message, refused=False)
                outputs = _outputs(message.infer_response)
                if "llm" in outputs:
                    yield _final(outputs)
                    return
                logprobs, calls = (outputs.get(name, b"") for name in ("logprobs", "tool_calls"))
                yield Piece(_text(outputs["text_output"]), _bytes(logprobs), _bytes(calls))
        except grpc.RpcError as error:
            raise _failed(name, error) from error
        finally:
            call.cancel()

    async def embed(self, texts: Sequence[str]) -> list[bytes]:
        raw = b"".join(_packed_text(text) for text in texts)
        request = service_pb2.ModelInferRequest(model_name=contracts.TEXT_EMBEDDING.name)
        request.inputs.add(name="text_input", datatype="BYTES", shape=(len(texts), 1))
        request.raw_input_contents.append(raw)
        found = _outputs(await self._infer(request, _SHORT_S))["embedding"]
        size = len(found) // len(texts)
        return [found[i : i + size] for i in range(0, len(found), size)]

    async def rate(self, inputs: Inputs) -> None:
        await self._infer(_request(contracts.FEEDBACK.name, inputs), _SHORT_S)

    async def is_ready(self) -> bool:
        request = service_pb2.ServerReadyRequest()  # all models, since `echolm` needs others
        try:
            return bool((await self._stub.ServerReady(request, timeout=_READY_S)).ready)
        except grpc.RpcError:
            return False

    async def close(self) -> None:
        await self._channel.close()

    async def _infer(self, request: Any, timeout: float | None = None) -> Any:
        try:
            return await self._stub.ModelInfer(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _failed(request.model_name, error) from error


def _request(model: str, inputs: Inputs) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, value in inputs.items():
        values = value if isinstance(value, list) else [value]
        datatype = _DATATYPES[name]
        request.inputs.add(name=name, datatype=datatype, shape=(1, len(values)))
        if datatype == "BYTES":
            raw = b"".join(map(_packed_text, values))
        else:
            raw = struct.pack(_FORMATS[datatype], value)
        request.raw_input_contents.append(raw)
    return request


def _packed_text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return len(data).to_bytes(4, "little") + data


def _outputs(response: Any) -> dict[str, bytes]:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: raw for output, raw in pairs}


def _bytes(raw: bytes) -> bytes:
    """The first element of a BYTES tensor."""
    return raw[4 : 4 + int.from_bytes(raw[:4], "little")]


def _text(raw: bytes) -> str:
    return _bytes(raw).decode("utf-8", "replace")


def _final(outputs: Mapping[str, bytes]) -> Final:
    ids = outputs["example_ids"]
    return Final(
        text=_text(outputs["text_output"]),
        llm=_text(outputs["llm"]),
        example_ids=struct.unpack(f"<{len(ids) // 8}q", ids),
        predicted_quality=struct.unpack("<f", outputs["predicted_quality"])[0],
        solicit_feedback=outputs["solicit_feedback"] != b"\0",
        feedback_token=_text(outputs["feedback_token"]),
        degraded=_text(outputs["degraded"]),
        finish_reason=_text(outputs["finish_reason"]),
        num_input_tokens=struct.unpack("<i", outputs["num_input_tokens"])[0],
        num_output_tokens=struct.unpack("<i", outputs["num_output_tokens"])[0],
        tool_calls=_bytes(outputs.get("tool_calls", b"")),
        logprobs=_bytes(outputs.get("logprobs", b"")),
    )


def _failed(model: str, error: grpc.RpcError) -> EchoError:
    status = error.code()
    refused = status is grpc.StatusCode.INVALID_ARGUMENT
    return _of_text(model, error.details() or status.name, refused)


def _of_text(model: str, message: str, refused: bool) -> EchoError:
    """An error of a model; what is not ours is unavailable, but for requests that it refuses."""
    code, text = parse(message)
    if code == EchoError.code:
        return EchoError(text)
    return from_remote(model, message, refused)
