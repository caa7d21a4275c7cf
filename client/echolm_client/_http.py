"""HTTP: requests over urllib3 and aiohttp, which come with ``tritonclient[http]``.

tritonclient packs and unpacks the bodies; its own HTTP clients are not used, since the
synchronous one may not be shared by threads and neither can stream.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import numpy as np
import urllib3
from tritonclient.http import InferenceServerClient, InferInput

from echolm_client._config import Endpoint
from echolm_client._errors import EchoLMError, ServerError, Timeout, Unavailable, from_status
from echolm_client._protocol import Call, Outputs

_HEADER_LENGTH = "Inference-Header-Content-Length"
_OK = 200
_POOL_SIZE = 64


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
    """Cuts a body of server-sent events into responses."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Outputs]:
        """Take the next bytes; yield the responses that they complete.

        Raises:
            ServerError: an event carries an error; Triton does not say here of which kind.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield _event_outputs(line.removeprefix(b"data:"))


def _event_outputs(data: bytes) -> Outputs:
    try:
        event = json.loads(data)
    except ValueError as problem:
        raise ServerError(f"expected an event in JSON, got {data[:80]!r}") from problem
    if "error" in event:
        raise ServerError(str(event["error"]))
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
        # An error of the model itself, which has this status whatever its kind.
        _event_outputs(text.removeprefix("data:").encode())
    try:
        message = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        message = text[:200]
    raise from_status(str(status), message)


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


def fetch(url: str, timeout: float | None) -> str:
    """GET a text page."""
    with _urllib3_errors(url):
        response = urllib3.request("GET", url, timeout=urllib3.Timeout(timeout), retries=False)
    check(response.status, response.data)
    return response.data.decode("utf-8", "replace")


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


class HttpTransport:
    """Implements :class:`echolm_client._transport.Transport`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = endpoint.base_url
        self._headers = dict(endpoint.headers)
        tls: dict[str, Any] = {"ssl_context": endpoint.tls.context()} if endpoint.is_secure else {}
        self._pool = urllib3.PoolManager(maxsize=_POOL_SIZE, retries=False, **tls)

    def infer(self, call: Call, timeout: float | None) -> Outputs:
        body, headers = encode(call)
        with _urllib3_errors(self._url):
            response = self._pool.request(
                "POST",
                f"{self._url}/v2/models/{call.model}/infer",
                body=body,
                headers=self._headers | headers,
                timeout=urllib3.Timeout(total=timeout),
            )
        check(response.status, response.data)
        return decode(response.data, response.headers.get(_HEADER_LENGTH))

    def stream(self, call: Call, timeout: float | None) -> Generator[Outputs, None, None]:
        deadline = None if timeout is None else time.monotonic() + timeout
        with _urllib3_errors(self._url):
            response = self._pool.request(
                "POST",
                f"{self._url}/v2/models/{call.model}/generate_stream",
                body=encode_json(call),
                headers=self._headers | {"Content-Type": "application/json"},
                timeout=urllib3.Timeout(total=timeout),
                preload_content=False,
            )
            complete = False
            try:
                if response.status != _OK:
                    check(response.status, response.read())
                events = Events()
                for data in response.stream():
                    yield from events.feed(data)
                    # urllib3's limit is per read: a slow trickle would go on for ever.
                    if deadline is not None and time.monotonic() > deadline:
                        raise Timeout(f"no complete answer from {self._url} in {timeout:g} s")
                complete = True
            finally:
                if complete:
                    response.release_conn()
                else:
                    response.close()

    def is_ready(self, model: str, timeout: float | None) -> bool:
        with _urllib3_errors(self._url):
            response = self._pool.request(
                "GET",
                f"{self._url}/v2/models/{model}/ready",
                headers=self._headers,
                timeout=urllib3.Timeout(total=timeout),
            )
        return response.status == _OK

    def fetch(self, url: str, timeout: float | None) -> str:
        return fetch(url, timeout)

    def close(self) -> None:
        self._pool.clear()


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

    async def infer(self, call: Call, timeout: float | None) -> Outputs:
        body, headers = encode(call)
        async with (
            _aiohttp_errors(self._url),
            self._session.post(
                f"{self._url}/v2/models/{call.model}/infer",
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(timeout),
            ) as response,
        ):
            body = await response.read()
        check(response.status, body)
        return decode(body, response.headers.get(_HEADER_LENGTH))

    async def stream(self, call: Call, timeout: float | None) -> AsyncGenerator[Outputs, None]:
        async with (
            _aiohttp_errors(self._url),
            self._session.post(
                f"{self._url}/v2/models/{call.model}/generate_stream",
                data=encode_json(call),
                headers={"Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(timeout),
            ) as response,
        ):
            if response.status != _OK:
                check(response.status, await response.read())
            events = Events()
            async for data in response.content.iter_any():
                for outputs in events.feed(data):
                    yield outputs

    async def is_ready(self, model: str, timeout: float | None) -> bool:
        async with (
            _aiohttp_errors(self._url),
            self._session.get(
                f"{self._url}/v2/models/{model}/ready", timeout=aiohttp.ClientTimeout(timeout)
            ) as response,
        ):
            return response.status == _OK

    async def fetch(self, url: str, timeout: float | None) -> str:
        return await fetch_async(url, timeout)

    async def close(self) -> None:
        if self._connected is not None:
            await self._connected.close()
