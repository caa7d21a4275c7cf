"""HTTP: requests over urllib3 and aiohttp, which come with ``tritonclient[http]``.

tritonclient packs and unpacks the bodies; its own HTTP clients are not used, since the
synchronous one may not be shared by threads and neither can stream.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import numpy as np
import urllib3
from tritonclient.http import InferenceServerClient, InferInput
from urllib3.connection import HTTPConnection, HTTPSConnection

from echolm_client._config import Endpoint
from echolm_client._errors import EchoLMError, ServerError, Timeout, Unavailable, from_server
from echolm_client._protocol import Call, Outputs

_HEADER_LENGTH = "Inference-Header-Content-Length"
_OK = 200
_POOL_SIZE = 64
_CHUNK_BYTES = 65_536


def encode(call: Call) -> tuple[bytes, dict[str, str]]:
    """The request's body and headers, for ``/infer``."""
    inputs = []
    for tensor in call.inputs:
        packed = InferInput(tensor.name, list(tensor.array.shape), tensor.datatype)
        packed.set_data_from_numpy(tensor.array)
        inputs.append(packed)
    body, header_length = InferenceServerClient.generate_request_body(inputs)
    return body, {} if header_length is None else {_HEADER_LENGTH: str(header_length)}


def decode(body: bytes, header_length: str | None) -> Outputs:
    """The tensors of a response of ``/infer``."""
    result = InferenceServerClient.parse_response_body(
        body, header_length=None if header_length is None else int(header_length)
    )
    names = [output["name"] for output in result.get_response().get("outputs", ())]
    return {name: result.as_numpy(name) for name in names}


def encode_json(call: Call) -> bytes:
    """The request's body for ``/generate_stream``, which takes values in place of tensors."""
    values = {}
    for tensor in call.inputs:
        row = [v.decode() if isinstance(v, bytes) else v for v in tensor.array[0].tolist()]
        values[tensor.name] = row if tensor.name == "stop_words" else row[0]
    return json.dumps(values).encode()


class Events:
    """Cuts a body of server-sent events into responses.

    Args:
        deadline: by ``time.monotonic``. One piece of the body may hold many responses, which the
            caller takes his time for, so the limits of reading the body are not enough.
        url: for the error.
    """

    def __init__(self, deadline: float = float("inf"), url: str = "") -> None:
        self._rest = b""
        self._deadline = deadline
        self._url = url

    def feed(self, data: bytes) -> Iterator[Outputs]:
        """Take the next bytes; yield the responses that they complete.

        Raises:
            Timeout: the deadline has passed.
            EchoLMError: an event carries an error. Triton does not say here of which kind; for
                its own errors that is :class:`ServerError`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                _remaining_s(self._deadline, self._url)
                yield _event_outputs(line.removeprefix(b"data:"))


def _event_outputs(data: bytes) -> Outputs:
    try:
        event = json.loads(data)
    except ValueError as problem:
        raise ServerError(f"expected an event in JSON, got {data[:80]!r}") from problem
    if "error" in event:
        raise from_server(None, str(event["error"]))
    return {
        # Triton writes an array of one element as that element.
        name: np.array(
            value if isinstance(value, list) else [value],
            dtype=np.object_ if isinstance(value, str) else None,
        )
        for name, value in event.items()
        if not isinstance(value, dict)
    }


def check(status: int, body: bytes) -> None:
    """Raise the error that a response of this status stands for, unless it is a success."""
    if status == _OK:
        return
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("data:"):
        # An error of a streaming model itself: Triton gives it this status whatever its kind.
        _event_outputs(text.removeprefix("data:").encode())
    try:
        message = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        message = text[:200]
    raise from_server(str(status), message)


@contextmanager
def _urllib3_errors(where: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.NewConnectionError as problem:
        # A subclass of ConnectTimeoutError, though nothing has timed out.
        raise Unavailable(f"cannot connect to {where}: {problem}") from problem
    except urllib3.exceptions.TimeoutError as problem:
        raise Timeout(f"no complete answer from {where} in the time allowed") from problem
    except urllib3.exceptions.HTTPError as problem:
        raise Unavailable(f"the connection to {where} failed: {problem}") from problem


@asynccontextmanager
async def _aiohttp_errors(where: str) -> AsyncGenerator[None, None]:
    try:
        yield
    except EchoLMError:  # our Timeout is a TimeoutError, too
        raise
    except asyncio.TimeoutError as problem:
        raise Timeout(f"no complete answer from {where} in the time allowed") from problem
    except aiohttp.ClientError as problem:
        raise Unavailable(f"the connection to {where} failed: {problem}") from problem


class _Connection(HTTPConnection):
    """Keeps the socket of a response within reach: where the server says that it will close the
    connection, ``sock`` is None while the response is still to be read."""

    response_socket: socket.socket | None = None

    def __str__(self) -> str:  # urllib3 puts it into its messages
        return f"{self.host}:{self.port}"

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # as urllib3's own
        self.response_socket = self.sock
        return super().getresponse()


class _SecureConnection(_Connection, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Requests:
    """Sends requests over urllib3, whose own limit is one per read, with one for the whole."""

    def __init__(self, endpoint: Endpoint | None = None) -> None:
        secure = endpoint is not None and endpoint.is_secure
        tls: dict[str, Any] = {"ssl_context": endpoint.tls.context()} if endpoint and secure else {}
        self._headers = dict(endpoint.headers) if endpoint else {}
        self._pool = urllib3.PoolManager(maxsize=_POOL_SIZE, retries=False, **tls)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        timeout: float | None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[urllib3.BaseHTTPResponse, Iterator[bytes]]]:
        """A response and its body, piece by piece as it arrives."""
        deadline = _deadline(timeout)
        with _urllib3_errors(url):
            response = self._pool.request(
                method,
                url,
                body=body,
                headers={**self._headers, **(headers or {})},
                timeout=urllib3.Timeout(total=timeout),
                preload_content=False,
            )
            try:
                yield response, _pieces(response, deadline, url)
            finally:
                if response.closed:  # read to its end
                    response.release_conn()
                else:
                    response.close()

    def read(
        self,
        method: str,
        url: str,
        timeout: float | None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[urllib3.BaseHTTPResponse, bytes]:
        """A response and its whole body."""
        with self.open(method, url, timeout, body, headers) as (response, pieces):
            return response, b"".join(pieces)

    def close(self) -> None:
        self._pool.clear()


def _deadline(timeout: float | None) -> float:
    return float("inf") if timeout is None else time.monotonic() + timeout


def _remaining_s(deadline: float, url: str) -> float | None:
    """Seconds until the deadline; None if there is none."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise Timeout(f"no complete answer from {url} in the time allowed")
    return None if remaining_s == float("inf") else remaining_s


def _pieces(response: urllib3.BaseHTTPResponse, deadline: float, url: str) -> Iterator[bytes]:
    connection: Any = response.connection
    while not response.closed:
        connection.response_socket.settimeout(_remaining_s(deadline, url))
        if piece := response.read1(_CHUNK_BYTES):
            yield piece


def fetch(url: str, timeout: float | None) -> str:
    """GET a text page."""
    requests = _Requests()
    try:
        response, body = requests.read("GET", url, timeout)
    finally:
        requests.close()
    check(response.status, body)
    return body.decode("utf-8", "replace")


async def fetch_async(url: str, timeout: float | None) -> str:
    """GET a text page."""
    async with (
        _aiohttp_errors(url),
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout)) as session,
        session.get(url) as response,
    ):
        body = await response.read()
    check(response.status, body)
    return body.decode("utf-8", "replace")


def _model_url(base_url: str, model: str, action: str) -> str:
    return f"{base_url}/v2/models/{model}/{action}"


class HttpTransport:
    """Implements :class:`echolm_client._transport.Transport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.base_url
        self._requests = _Requests(endpoint)

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        body, headers = encode(call)
        url = _model_url(self._url, call.model, "infer")
        response, body = self._requests.read("POST", url, timeout, body, headers)
        check(response.status, body)
        return decode(body, response.headers.get(_HEADER_LENGTH))

    def stream(self, call: Call, timeout: float | None) -> Generator[Outputs, None, None]:
        url = _model_url(self._url, call.model, "generate_stream")
        body, headers = encode_json(call), {"Content-Type": "application/json"}
        deadline = _deadline(timeout)
        with self._requests.open("POST", url, timeout, body, headers) as (response, pieces):
            if response.status != _OK:
                check(response.status, b"".join(pieces))
            events = Events(deadline, url)
            for piece in pieces:
                yield from events.feed(piece)

    def is_ready(self, model: str, timeout: float | None) -> bool:
        url = _model_url(self._url, model, "ready")
        return self._requests.read("GET", url, timeout)[0].status == _OK

    def fetch(self, url: str, timeout: float | None) -> str:
        return fetch(url, timeout)

    def close(self) -> None:
        self._requests.close()


class AsyncHttpTransport:
    """Implements :class:`echolm_client._transport.AsyncTransport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._url = endpoint.base_url
        self._connected: aiohttp.ClientSession | None = None

    @property
    def _session(self) -> aiohttp.ClientSession:
        # Late, since a session belongs to the event loop that it was made in.
        if self._connected is None:
            tls = self._endpoint.tls.context() if self._endpoint.is_secure else True
            self._connected = aiohttp.ClientSession(
                # As many connections as requests: how many are in flight is the caller's choice.
                connector=aiohttp.TCPConnector(ssl=tls, limit=0),
                headers=dict(self._endpoint.headers),
            )
        return self._connected

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, timeout: float | None, **request: Any
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        limit = aiohttp.ClientTimeout(timeout)
        async with (
            _aiohttp_errors(url),
            self._session.request(method, url, timeout=limit, **request) as response,
        ):
            yield response

    async def infer(self, call: Call, timeout: float | None) -> Outputs:
        body, headers = encode(call)
        url = _model_url(self._url, call.model, "infer")
        async with self._open("POST", url, timeout, data=body, headers=headers) as response:
            body = await response.read()
        check(response.status, body)
        return decode(body, response.headers.get(_HEADER_LENGTH))

    async def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        url = _model_url(self._url, call.model, "generate_stream")
        body, headers = encode_json(call), {"Content-Type": "application/json"}
        deadline = _deadline(timeout)
        async with self._open("POST", url, timeout, data=body, headers=headers) as response:
            if response.status != _OK:
                check(response.status, await response.read())
            events = Events(deadline, url)
            async for data in response.content.iter_any():
                for outputs in events.feed(data):
                    yield outputs

    async def is_ready(self, model: str, timeout: float | None) -> bool:
        async with self._open("GET", _model_url(self._url, model, "ready"), timeout) as response:
            return response.status == _OK

    async def fetch(self, url: str, timeout: float | None) -> str:
        return await fetch_async(url, timeout)

    async def aclose(self) -> None:
        if self._connected is not None:
            await self._connected.close()
