"""gRPC: tritonclient's generated stubs, synchronous and asyncio.

The stubs and not ``InferenceServerClient``: its synchronous form allows one stream per object
and needs a thread and a callback for it, while a stub opens any number of streams over one
channel, each of which is an iterator that can be cancelled. One stream carries one request,
so its end is the request's end and its status is the request's status.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

import grpc
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from echolm_client._config import Endpoint
from echolm_client._errors import EchoLMError, from_server
from echolm_client._protocol import Call, Outputs

_UNLIMITED = -1
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    # gRPC's own back-off grows to two minutes, in which a server that is up looks down.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def encode(call: Call) -> service_pb2.ModelInferRequest:
    """The request as a protobuf message."""
    request = service_pb2.ModelInferRequest(model_name=call.model)
    for tensor in call.inputs:
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        if tensor.datatype == "BYTES":
            request.raw_input_contents.append(serialize_byte_tensor(tensor.array).item())
        else:
            request.raw_input_contents.append(tensor.array.tobytes())
    return request


def decode(response: service_pb2.ModelInferResponse) -> Outputs:
    """The response's tensors; none for an empty final response."""
    result = InferResult(response)
    return {output.name: result.as_numpy(output.name) for output in response.outputs}


def decode_stream(response: service_pb2.ModelStreamInferResponse) -> Outputs:
    """The tensors of one response of a stream.

    Raises:
        EchoLMError: it carries an error. Triton gives streamed errors no status, unless asked for
            by the ``triton_grpc_error`` header, with which a failing request can crash the whole
            server (Triton 2.51); EchoLM's own errors are known by their code.
    """
    if response.error_message:
        raise from_server(None, response.error_message)
    return decode(response.infer_response)


def _error(problem: grpc.RpcError) -> EchoLMError:
    if problem.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return from_server(problem.code().name, "no complete answer in the time allowed")
    return from_server(problem.code().name, problem.details() or "")


def _credentials(endpoint: Endpoint) -> grpc.ChannelCredentials | None:
    if not endpoint.is_secure:
        return None
    tls = endpoint.tls
    return grpc.ssl_channel_credentials(
        *(
            path.read_bytes() if path else None
            for path in (tls.root_certificates, tls.private_key, tls.certificate_chain)
        )
    )


def _metadata(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    return tuple((key.lower(), value) for key, value in endpoint.headers.items())


class GrpcTransport:
    """Implements :class:`echolm_client._transport.Transport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        credentials = _credentials(endpoint)
        self._channel = (
            grpc.secure_channel(endpoint.address, credentials, options=_CHANNEL_OPTIONS)
            if credentials
            else grpc.insecure_channel(endpoint.address, options=_CHANNEL_OPTIONS)
        )
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = _metadata(endpoint)

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        future = self._stub.ModelInfer.future(
            encode(call), timeout=timeout, metadata=self._metadata
        )
        try:
            return decode(future.result())
        except grpc.RpcError as problem:
            raise _error(problem) from problem
        finally:
            # Ctrl-C while waiting must stop the server's work, too; else it does nothing.
            future.cancel()

    def stream(self, call: Call, timeout: float | None) -> Generator[Outputs, None, None]:
        responses = self._stub.ModelStreamInfer(
            iter([encode(call)]), timeout=timeout, metadata=self._metadata
        )
        try:
            for response in responses:
                yield decode_stream(response)
        except grpc.RpcError as problem:
            raise _error(problem) from problem
        finally:
            responses.cancel()

    def is_ready(self, model: str, timeout: float | None) -> bool:
        try:
            response = self._stub.ModelReady(
                service_pb2.ModelReadyRequest(name=model), timeout=timeout, metadata=self._metadata
            )
        except grpc.RpcError as problem:
            raise _error(problem) from problem
        return bool(response.ready)

    def fetch(self, url: str, timeout: float | None) -> str:
        from echolm_client._http import fetch

        return fetch(url, timeout)

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    """Implements :class:`echolm_client._transport.AsyncTransport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._metadata = _metadata(endpoint)
        self._channel: Any = None
        self._connected: Any = None

    @property
    def _stub(self) -> Any:
        # Late, since a grpc.aio channel belongs to the event loop that it was made in.
        if self._connected is None:
            credentials = _credentials(self._endpoint)
            address = self._endpoint.address
            self._channel = (
                grpc.aio.secure_channel(address, credentials, options=_CHANNEL_OPTIONS)
                if credentials
                else grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
            )
            self._connected = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._connected

    async def infer(self, call: Call, timeout: float | None) -> Outputs:
        try:
            # grpc.aio cancels the request when the waiting task is cancelled.
            return decode(
                await self._stub.ModelInfer(encode(call), timeout=timeout, metadata=self._metadata)
            )
        except grpc.RpcError as problem:
            raise _error(problem) from problem

    async def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        responses = self._stub.ModelStreamInfer(
            iter([encode(call)]), timeout=timeout, metadata=self._metadata
        )
        try:
            async for response in responses:
                yield decode_stream(response)
        except grpc.RpcError as problem:
            raise _error(problem) from problem
        finally:
            responses.cancel()

    async def is_ready(self, model: str, timeout: float | None) -> bool:
        try:
            response = await self._stub.ModelReady(
                service_pb2.ModelReadyRequest(name=model), timeout=timeout, metadata=self._metadata
            )
        except grpc.RpcError as problem:
            raise _error(problem) from problem
        return bool(response.ready)

    async def fetch(self, url: str, timeout: float | None) -> str:
        from echolm_client._http import fetch_async

        return await fetch_async(url, timeout)

    async def aclose(self) -> None:
        if self._channel is not None:
            await self._channel.close()
