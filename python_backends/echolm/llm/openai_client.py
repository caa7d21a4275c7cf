"""An LLM behind a server of OpenAI's API: vLLM, SGLang, ``trtllm-serve``, NIM, hosted ones.

It is called with aiohttp and not with the package ``openai`` (2.x): at 16 requests in flight that
took 13 times the CPU time for a request (1.7 ms) and 12 times that for a piece of a stream, and it
reads the environment by itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from echolm.errors import ContextLengthError, EchoError, InvalidRequestError, UnavailableError
from echolm.llm.credentials import api_key, ssl_context
from echolm.llm.openai_answer import ChatAnswer, TextAnswer
from echolm.llm.optional_inputs import optional_inputs
from echolm.primitives import Completion, OnPiece, Piece, Sampling
from echolm.settings import LLMSettings

_MOST_BYTES = 1 << 24
"""Largest answer that is read, in one piece or as one line of a stream."""
_MOST_ERROR_CHARS = 300
_AFTER_DONE_S = 1.0
_TOO_LONG = re.compile(
    r"context[ _](length|window|size)|maximum (model|sequence|input|prompt) length"
    r"|max_(seq_len|input_len|num_tokens|model_len)|maximum allowed (input )?length"
    r"|max_tokens must be at least 1, got -|reduce the length|prompt is too long|`inputs` tokens",
    re.IGNORECASE,
)
"""In messages about a prompt that does not fit, of vLLM, SGLang, TensorRT-LLM, NIM, TGI, llama.cpp
and hosted LLMs, few of which give OpenAI's code for it."""
_REFUSED = (400, 413, 422)
_DEFAULT = Sampling()
_PENALTIES = ("frequency_penalty", "presence_penalty")
_GUIDES = ("json", "json_schema")
_EMPTY = Piece()
_BEYOND_OPENAI = ("repetition_penalty", "min_tokens")
"""Of vLLM, SGLang and ``trtllm-serve``, which take ``top_k`` as well."""


class OpenAIClient:
    """Calls one LLM by chat completions, or by completions of a whole prompt."""

    def __init__(self, llm: LLMSettings, timeout_s: float) -> None:
        """
        Args:
            llm: of contract ``openai``.
            timeout_s: seconds for a whole answer.

        Raises:
            ConfigurationError: a file of its key or of TLS cannot be used.
        """
        self._llm = llm
        self._chat = llm.openai_api == "chat"
        self._base = llm.url.rstrip("/")
        self._key = api_key(llm)
        self._ssl = ssl_context(llm)
        self._timeout = aiohttp.ClientTimeout(timeout_s, sock_connect=llm.connect_timeout_s)
        self._sessions: AsyncGenerator[aiohttp.ClientSession, None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        """See :class:`~echolm.llm.endpoint.LLMClient`.

        Args:
            prompt: for chat completions the messages as a JSON array.
        """
        body = orjson.dumps(self._body(prompt, sampling, on_piece is not None))
        path = "/chat/completions" if self._chat else "/completions"
        try:
            async with await self._send("POST", path, body) as response:
                if response.status != 200:
                    raise self._error(response.status, await _read(response))
                answer = ChatAnswer() if self._chat else TextAnswer()
                if on_piece is not None and response.content_type == "text/event-stream":
                    await self._read_stream(response, answer, on_piece)
                    return answer.completion()
                piece = answer.take(self._parsed(await _read(response)))
                if on_piece is not None and piece != _EMPTY:
                    on_piece(piece)
                return answer.completion()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise self._broken(error) from error

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        """See :class:`~echolm.llm.endpoint.LLMClient`."""
        llm = self._llm
        taken = {*_PENALTIES, *(_BEYOND_OPENAI if llm.takes_top_k else ())}
        if llm.takes_logprobs:
            taken.add("logprobs")
        if self._chat and llm.takes_tools:
            taken.update(("tools", "tool_choice"))
        if self._chat and llm.takes_response_format and sampling.guide_type in _GUIDES:
            taken.update(("guided_decoding_guide_type", "guided_decoding_guide"))
        return [name for name in optional_inputs(sampling) if name not in taken]

    async def check(self) -> None:
        """See :class:`~echolm.llm.endpoint.ServedLLM`; asks for the list of models."""
        try:
            async with await self._send("GET", "/models") as response:
                if response.status != 200:
                    raise self._error(response.status, await _read(response))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise self._broken(error) from error

    def _body(self, prompt: str, sampling: Sampling, stream: bool) -> dict[str, Any]:
        llm = self._llm
        if not llm.takes_top_k and sampling.temperature == 0:
            sampling = replace(sampling, top_k=0)  # the likeliest token is taken anyway
        if not llm.takes_top_k and sampling.top_k:
            raise InvalidRequestError.of(
                "top_k", f"none for the LLM {llm.name}", sampling.top_k, "leave it out"
            )
        body: dict[str, Any] = {
            "model": llm.remote_model or llm.name,
            llm.max_tokens_field: sampling.max_tokens,
            "temperature": sampling.temperature,
        }
        body["messages" if self._chat else "prompt"] = _messages(prompt) if self._chat else prompt
        if sampling.seed is not None:
            body["seed"] = sampling.seed % 2**63  # servers take integers with a sign
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        for name in ("top_p", "top_k", *_PENALTIES, *_BEYOND_OPENAI):
            if (value := getattr(sampling, name)) != getattr(_DEFAULT, name):
                body[name] = value
        if sampling.top_logprobs is not None:
            body |= self._logprobs(sampling.top_logprobs)
        for name in ("tools", "tool_choice"):
            if value := getattr(sampling, name):
                body[name] = _parsed(name, value)
        if sampling.response_format:
            body["response_format"] = _parsed("response_format", sampling.response_format)
        elif sampling.guide_type in _GUIDES:
            body["response_format"] = _format(sampling)
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **llm.extra_body}

    def _logprobs(self, most: int) -> dict[str, Any]:
        if not self._chat:
            return {"logprobs": most}
        return {"logprobs": True, **({"top_logprobs": most} if most else {})}

    async def _send(
        self, method: str, path: str, body: bytes | None = None
    ) -> aiohttp.ClientResponse:
        """The response, of which the head is there.

        A server may close a connection that waits for its next request at the moment when that is
        sent: it is sent once more.
        """
        session = await self._open()
        for again in (True, False):
            try:
                return await session.request(
                    method, f"{self._base}{path}", data=body, allow_redirects=False
                )
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not again:
                    raise
        raise AssertionError

    async def _open(self) -> aiohttp.ClientSession:
        """The session of this event loop."""
        if self._session is None or self._session.closed:
            # An event loop that ends closes its generators, and so the connections.
            self._sessions = self._made()
            self._session = await anext(self._sessions)
        return self._session

    async def _made(self) -> AsyncGenerator[aiohttp.ClientSession, None]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        async with aiohttp.ClientSession(
            # The router decides how many requests there are.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl or True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=self._timeout,
            read_bufsize=_MOST_BYTES // 2,  # a line may be twice as long
        ) as session:
            yield session

    async def _read_stream(
        self, response: aiohttp.ClientResponse, answer: ChatAnswer | TextAnswer, on_piece: OnPiece
    ) -> None:
        """Give the pieces of a stream of server-sent events on, until its last."""
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                answer.done = True
                break
            if (piece := answer.take(self._parsed(data))) != _EMPTY:
                on_piece(piece)
        if not answer.done and not answer.finish_reason:
            raise UnavailableError(f"{self._llm.name}: the stream ended before the answer did")
        # A response that is read to its end leaves its connection to the next request.
        with suppress(asyncio.TimeoutError, aiohttp.ClientError, OSError):
            await asyncio.wait_for(response.content.read(), _AFTER_DONE_S)

    def _parsed(self, data: bytes) -> dict[str, Any]:
        """A JSON object of the server; an EchoError if it is an error or no object."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise UnavailableError(
                f"{self._llm.name}: expected JSON objects as OpenAI's API has them from "
                f"{self._base}, got something else; correct llms.url"
            )
        if value.get("error") or value.get("object") == "error":
            code = _said(value)[1]
            raise self._error(int(code) if code.isdecimal() and len(code) == 3 else 500, data)
        return value

    def _error(self, status: int, body: bytes) -> EchoError:
        """What an error of the server means, by its status and what it says."""
        name = self._llm.name
        try:
            message, code = _said(orjson.loads(body))
        except orjson.JSONDecodeError:
            message, code = "", ""
        if self._key:
            message = message.replace(self._key, "***")
        if len(message) > _MOST_ERROR_CHARS:
            message = f"{message[:_MOST_ERROR_CHARS]}…"
        said = f": {message}" if message else ""
        if status in (401, 403):
            # What it says may name the key.
            setting = "llms.api_key_file" if self._llm.api_key_file else "llms.api_key"
            got = "another" if self._key else "none"
            return UnavailableError(
                f"{name}: expected a key that {self._base} takes, got {got} (status {status}); "
                f"correct {setting}"
            )
        if 300 <= status < 400 or status == 405:
            return UnavailableError(
                f"{name}: expected OpenAI's API at {self._base}, got status {status}; correct "
                "llms.url"
            )
        if status == 404:
            model = self._llm.remote_model or name
            return UnavailableError(
                f"{name}: expected the LLM {model!r} at {self._base}, got status 404{said}; "
                "correct llms.remote_model or llms.url"
            )
        if code == "unsupported_parameter" and self._llm.max_tokens_field in message:
            return UnavailableError(f"{name}: {message}; correct llms.max_tokens_field")
        too_long = code == "context_length_exceeded" or _TOO_LONG.search(message)
        if too_long and status in (*_REFUSED, 500):
            return ContextLengthError(f"{name}: {message}")
        if status in _REFUSED:
            return InvalidRequestError(f"{name}: {message or f'refused with status {status}'}")
        return UnavailableError(f"{name}: status {status}{said}")

    def _broken(self, error: Exception) -> UnavailableError:
        """The server could not be called, or broke off."""
        name = self._llm.name
        if isinstance(error, aiohttp.ClientSSLError) or "[SSL" in str(error):
            mend = "correct llms.tls_ca, llms.tls_certificate or llms.url"
            return UnavailableError(f"{name}: no TLS connection to {self._base}: {error}; {mend}")
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            limit = f"{self._llm.connect_timeout_s:g} s"
            return UnavailableError(f"{name}: no connection to {self._base} in {limit}")
        if isinstance(error, asyncio.TimeoutError):
            return UnavailableError(f"{name}: no whole answer in {self._timeout.total:g} s")
        return UnavailableError(f"{name}: {self._base}: {error or type(error).__name__}")


def _parsed(name: str, text: str) -> Any:
    """JSON that becomes a part of a request, in which it must not say anything else."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError.of(name, "JSON", "what is not") from error


def _format(sampling: Sampling) -> dict[str, Any]:
    """A guide as a response format."""
    if sampling.guide_type == "json":
        return {"type": "json_object"}
    schema = _parsed("guided_decoding_guide", sampling.guide)
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _messages(prompt: str) -> Any:
    try:
        messages = orjson.loads(prompt)
    except orjson.JSONDecodeError:
        messages = None
    if not isinstance(messages, list):
        raise InvalidRequestError.of("text_input", "a JSON array of messages", prompt)
    return messages


def _said(value: Any) -> tuple[str, str]:
    """Message and code of an error: OpenAI's form, the flat one, FastAPI's ``detail``."""
    error = (value.get("error") or value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return str(error), ""
    return str(error.get("message") or error.get("detail") or ""), str(error.get("code") or "")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body; ValueError if it is too large."""
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > _MOST_BYTES:
            raise ValueError(f"expected an answer of at most {_MOST_BYTES} bytes, got more")
    return bytes(body)
