"""The gateway's application: one handler an endpoint."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from echolm import contracts
from echolm.errors import EchoError
from echolm.gateway import memory, rates
from echolm.gateway.backend import Backend, Final, Inputs, Piece
from echolm.gateway.body import read_json
from echolm.gateway.connection import Connected
from echolm.gateway.errors import CLIENT_GONE, ApiError, api_error, internal
from echolm.gateway.keys import Key, KeyFile, Keyring, is_loopback, refused
from echolm.gateway.memory import ResponseMemory
from echolm.gateway.metrics import GatewayMetrics
from echolm.gateway.rates import Rates
from echolm.gateway.requests import (
    Body,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    FeedbackRequest,
    Generation,
    chat_inputs,
    completion_inputs,
    cost_weight_of,
    model_inputs,
    parse,
    unknown_model,
)
from echolm.gateway.responses import (
    CHAT,
    DONE,
    TEXT,
    Chunks,
    Envelope,
    Form,
    fingerprint,
)
from echolm.gateway.streaming import GONE, EventStream, merged
from echolm.primitives import DEFAULT_TENANT
from echolm.settings import Settings
from echolm.sqlite import SQLiteFile

logger = logging.getLogger("echolm")

LOGICAL_MODEL = contracts.ECHOLM.name
EMBEDDING_MODEL = contracts.TEXT_EMBEDDING.name
_CHARS_PER_TOKEN = 4
"""By which tokens are estimated that nobody has counted."""
_READ = ("messages", "text_input", "tools", "tool_choice", "response_format")
"""Inputs that LLMs read."""


@dataclass(frozen=True)
class Caller:
    """Who sends a request.

    Attributes:
        key: None where none is asked for.
    """

    key: Key | None

    @property
    def may_name_tenants(self) -> bool:
        return self.key is None or self.key.role == "admin"

    def tenant(self, asked: str | None) -> str:
        """Whose request it is; ApiError 403 if it may not be for the tenant that it names."""
        own = DEFAULT_TENANT if self.key is None else self.key.tenant
        if asked in (None, own):
            return own
        if not self.may_name_tenants:
            message = f"tenant: expected {own!r}, the key's, or none, got {asked[:80]!r}"
            raise ApiError(403, message, code="tenant_not_allowed", param="tenant")
        return asked


class Charge:
    """What a request has taken of its key's limits.

    Args:
        tokens: as many as it may need; what it did not need is given back by :meth:`settle`. A
            client that goes away gets nothing back.
    """

    def __init__(
        self, rates: Rates, key: Key | None, tokens: int, spawn: Callable[[Any], None]
    ) -> None:
        self._rates, self._key, self._tokens, self._spawn = rates, key, tokens, spawn
        self.headers: dict[str, str] = {}

    async def take(self) -> Charge:
        """ApiError 429 if a limit is used up."""
        if self._key is not None and self._key.is_limited:
            for left in await self._rates.take(self._key, self._tokens):
                self.headers.update(left.headers())
        return self

    def settle(self, tokens: int) -> None:
        """Say how many were used."""
        if self._key is not None and self._key.is_limited:
            self._spawn(self._rates.correct(self._key, tokens - self._tokens))

    @contextlib.contextmanager
    def returned_on_failure(self) -> Iterator[None]:
        """What fails within costs no tokens, unless it is the client that went away."""
        try:
            yield
        except ClientDisconnect:
            raise
        except Exception:
            self.settle(0)
            raise


class Gateway:
    """Answers OpenAI's requests through a backend."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        keyring: Keyring,
        rates: Rates,
        memory: ResponseMemory,
        metrics: GatewayMetrics,
    ) -> None:
        self._settings, self._limits = settings, settings.gateway
        self._backend, self._keyring, self._rates = backend, keyring, rates
        self._memory, self._metrics = memory, metrics
        self._llms = [llm.name for llm in settings.llms]
        self._fingerprint = fingerprint(settings)
        self._open = settings.gateway.open or is_loopback(settings.gateway.host)
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- Endpoints

    async def chat(self, request: Request) -> Response:
        caller = self._caller(request)
        asked = parse(ChatRequest, await read_json(request, self._limits))
        model = model_inputs(asked, LOGICAL_MODEL, self._llms)
        tenant = caller.tenant(asked.tenant)
        inputs = {**chat_inputs(asked), **model, "tenant": tenant}
        return await self._generate(request, caller, CHAT, asked, [inputs])

    async def complete(self, request: Request) -> Response:
        caller = self._caller(request)
        asked = parse(CompletionRequest, await read_json(request, self._limits))
        model = model_inputs(asked, LOGICAL_MODEL, self._llms)
        tenant = caller.tenant(asked.tenant)
        common = {**completion_inputs(asked), **model}
        prompts = asked.prompts
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ApiError.of("prompt", "one text or more, none of them empty", prompts)
        rows = [{"text_input": prompt, **common, "tenant": tenant} for prompt in prompts]
        return await self._generate(request, caller, TEXT, asked, rows)

    async def embed(self, request: Request) -> Response:
        caller = self._caller(request)
        asked = parse(EmbeddingRequest, await read_json(request, self._limits))
        if asked.model != EMBEDDING_MODEL:
            raise unknown_model(asked.model)
        texts, most = asked.texts, self._settings.limits.max_input_chars
        for i, text in enumerate(texts):
            if not 0 < len(text.strip()) <= len(text) <= most:
                got = f"{len(text)} characters"
                raise ApiError.of(f"input[{i}]", f"a text of 1 to {most} characters", got)
        tokens = sum(_estimated(len(text)) for text in texts)
        charge = await self._charge(caller, tokens)
        vectors: list[bytes] = []
        with charge.returned_on_failure(), Connected(request.receive):
            for start in range(0, len(texts), contracts.MAX_BATCH_SIZE):
                batch = texts[start : start + contracts.MAX_BATCH_SIZE]
                vectors += await self._backend.embed(batch)
                if asked.dimensions not in (None, dimension := len(vectors[0]) // 4):
                    expected = f"{dimension}, the model's, or none"
                    raise ApiError.of("dimensions", expected, asked.dimensions)
        plain = asked.encoding_format != "base64"
        data = [
            {
                "object": "embedding",
                "index": i,
                "embedding": np.frombuffer(raw, "<f4") if plain else base64.b64encode(raw).decode(),
            }
            for i, raw in enumerate(vectors)
        ]
        return _json(
            {
                "object": "list",
                "data": data,
                "model": asked.model,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            },
            charge.headers,
        )

    async def rate(self, request: Request) -> Response:
        caller = self._caller(request)
        asked = parse(FeedbackRequest, await read_json(request, self._limits))
        tenant = caller.tenant(asked.tenant)
        token = asked.feedback_token
        if token is None:
            assert asked.id is not None
            id = f"{asked.id}/{asked.index}" if asked.index else asked.id
            token = await self._token("id", id, caller, tenant)
        inputs: dict[str, Any] = {"feedback_token": token}
        if asked.score is not None:
            inputs["score"] = asked.score
        if (other := asked.preferred_over) is not None:
            if other.startswith((CHAT.prefix, TEXT.prefix)):
                other = await self._token("preferred_over", other, caller, tenant)
            inputs["preferred_over"] = other
        # Whoever may name tenants may rate any answer, unless it names one.
        if asked.tenant is not None or not caller.may_name_tenants:
            inputs["tenant"] = tenant
        charge = await self._charge(caller, 0)
        await self._backend.rate(inputs)
        return _json({"object": "feedback", "accepted": True}, charge.headers)

    async def models(self, request: Request) -> Response:
        self._caller(request)
        shown = [f"{LOGICAL_MODEL}-{weight:g}" for weight in self._limits.cost_weights]
        names = [LOGICAL_MODEL, *shown, *self._llms, EMBEDDING_MODEL]
        return _json({"object": "list", "data": [self._model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        self._caller(request)
        return _json(self._model(request.path_params["id"]))

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if await self._backend.is_ready():
            return _json({"status": "ready"})
        message = "Triton: expected its models to be ready, got none"
        raise ApiError(503, message, kind="server_error", headers={"retry-after": "1"})

    async def show_metrics(self, request: Request) -> Response:
        if not self._caller(request).may_name_tenants:
            raise ApiError(403, "API key: expected one of the role admin, got another")
        return Response(self._metrics.page(), media_type=CONTENT_TYPE_LATEST)

    # ---- What they share

    def _caller(self, request: Request) -> Caller:
        if self._open and not self._keyring.is_needed:
            return Caller(None)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise refused("got none")
        return Caller(self._keyring.check(secret.strip()))

    async def _charge(self, caller: Caller, tokens: int) -> Charge:
        return await Charge(self._rates, caller.key, tokens, self._spawn).take()

    async def _generate(
        self,
        request: Request,
        caller: Caller,
        form: Form,
        asked: Generation,
        prompts: Sequence[dict[str, Any]],
    ) -> Response:
        n = asked.n or 1
        if len(prompts) * n > self._limits.max_choices:
            expected = f"at most {self._limits.max_choices} answers to one request"
            name = "n" if len(prompts) == 1 else "prompt"
            raise ApiError.of(name, expected, len(prompts) * n)
        if asked.stream_options is not None and not asked.stream:
            raise ApiError.of("stream_options", "stream: true beside it", "an object")
        rows = [_seeded(prompt, k) for prompt in prompts for k in range(n)]
        new_tokens = asked.new_tokens(self._settings.limits.default_max_tokens)
        read = sum(map(_estimated_read, prompts))
        charge = await self._charge(caller, read + len(rows) * new_tokens)
        envelope = Envelope(form, asked.model, self._fingerprint)
        if asked.stream:
            events = self._events(asked, envelope, rows, n, charge, new_tokens)
            return EventStream(events, charge.headers)
        with charge.returned_on_failure(), Connected(request.receive):
            finals = await self._answers(rows)
        written = [_written(final) for final in finals]
        charge.settle(self._ended(envelope, rows, finals, written, new_tokens))
        body = envelope.whole(finals, finals[::n])
        return Response(body, headers=charge.headers, media_type="application/json")

    async def _answers(self, rows: Sequence[Inputs]) -> list[Final]:
        if len(rows) == 1:
            return [await self._backend.answer(rows[0])]
        tasks = [asyncio.ensure_future(self._backend.answer(row)) for row in rows]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _events(
        self,
        asked: Generation,
        envelope: Envelope,
        rows: Sequence[Inputs],
        n: int,
        charge: Charge,
        new_tokens: int,
    ) -> AsyncGenerator[bytes, None]:
        options = asked.stream_options
        chunks = Chunks(envelope, bool(options and options.include_usage))
        finals: list[Final | None] = [None] * len(rows)
        written = [0] * len(rows)
        with charge.returned_on_failure():
            async with aclosing(merged(self._backend, rows)) as parts:
                async for index, part in parts:
                    written[index] += _written(part)
                    if isinstance(part, Piece):
                        yield chunks.piece(index, part)
                    else:
                        finals[index] = part
                        yield chunks.final(index, part)
        answers = [final for final in finals if final is not None]
        charge.settle(self._ended(envelope, rows, answers, written, new_tokens))
        yield chunks.usage(answers[::n], answers) + DONE

    def _ended(
        self,
        envelope: Envelope,
        rows: Sequence[Inputs],
        finals: Sequence[Final],
        written: Sequence[int],
        new_tokens: int,
    ) -> int:
        """Remember the answers; gives how many tokens they took.

        Args:
            written: characters of each answer, by which its tokens are estimated where its LLM
                does not count them.
            new_tokens: most tokens of one answer.
        """
        tokens = 0
        for index, (row, final, chars) in enumerate(zip(rows, finals, written, strict=True)):
            id = envelope.choice_id(index)
            self._memory.remember(id, final.feedback_token, row["tenant"])
            read, generated = final.num_input_tokens, final.num_output_tokens
            tokens += read if read >= 0 else _estimated_read(row)
            tokens += generated if generated >= 0 else min(_estimated(chars), new_tokens)
        return tokens

    async def _token(self, name: str, id: str, caller: Caller, tenant: str) -> str:
        """The feedback token of a response."""
        found = await self._memory.token(id[:200])
        if found is None or not (found[1] == tenant or caller.may_name_tenants):
            message = f"{name}: expected the id of a response that is remembered, got {id[:80]}"
            mend = "rate an answer that is longer ago by its feedback_token"
            raise ApiError(404, f"{message}; {mend}", code="response_not_found", param=name)
        return found[0]

    def _model(self, id: str) -> dict[str, Any]:
        """What is told of a model; ApiError 404 if there is none of this name."""
        model = {"id": id, "object": "model", "created": 0, "owned_by": "echolm"}
        if id in (*self._llms, EMBEDDING_MODEL):
            return model
        own = self._settings.routing.cost_weight if id == LOGICAL_MODEL else None
        weight = cost_weight_of(id, LOGICAL_MODEL) if own is None else own
        if weight is None:
            raise unknown_model(id)
        return {**model, "echolm": {"cost_weight": weight}}

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a limit was not corrected: %s", error)

    async def close(self) -> None:
        """Write what waits, and end all calls."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._memory.close()
        self._rates.close()
        await self._backend.close()


class Observed:
    """Counts requests, and gives each an id."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()
        id = f"req_{secrets.token_hex(12)}".encode()

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id)]
            await send(message)

        state = scope.setdefault("state", {})
        self._metrics.began()
        try:
            await self._app(scope, receive, observed)
        finally:
            if GONE in state:
                status = CLIENT_GONE
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.ended(endpoint, status, time.perf_counter() - began)


def application(gateway: Gateway, metrics: GatewayMetrics) -> FastAPI:
    """The ASGI application of a gateway, which it closes at its end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.close()

    app = FastAPI(
        title="EchoLM", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan
    )
    routes: tuple[tuple[str, str, Any, type[Body] | None], ...] = (
        ("POST", "/v1/chat/completions", gateway.chat, ChatRequest),
        ("POST", "/v1/completions", gateway.complete, CompletionRequest),
        ("POST", "/v1/embeddings", gateway.embed, EmbeddingRequest),
        ("POST", "/v1/feedback", gateway.rate, FeedbackRequest),
        ("GET", "/v1/models", gateway.models, None),
        ("GET", "/v1/models/{id:path}", gateway.model, None),
        ("GET", "/health", gateway.health, None),
        ("GET", "/ready", gateway.ready, None),
        ("GET", "/metrics", gateway.show_metrics, None),
    )
    for method, path, endpoint, kind in routes:
        # Bodies are read and checked in the handlers, within bounds and with OpenAI's errors.
        extra = None if kind is None else {"requestBody": _documented(kind)}
        app.add_api_route(
            path, endpoint, methods=[method], response_class=Response, openapi_extra=extra
        )
    for kind_of_error in (ApiError, EchoError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind_of_error, _respond_to)
    app.add_middleware(Observed, metrics=metrics)
    return app


def open_gateway(settings: Settings, backend: Backend, metrics: GatewayMetrics) -> Gateway:
    """The gateway of a data directory.

    Raises:
        ConfigurationError: the file of the keys cannot be used.
        UnavailableError: the gateway's own file cannot be used.
    """

    def prepare(db: Any) -> None:
        rates.prepare(db)
        memory.prepare(db)

    keyring = Keyring(KeyFile(settings.keys_path), settings.keys_are_required)
    file = SQLiteFile(settings.data_dir / "gateway.sqlite", "gateway", prepare, durable=False)
    return Gateway(
        settings,
        backend,
        keyring,
        Rates(file, time.time),
        ResponseMemory(file, settings.gateway.remembered_responses),
        metrics,
    )


def _documented(kind: type[Body]) -> dict[str, Any]:
    # With an id, references within the schema do not mean the whole document.
    schema = {"$id": f"urn:echolm:{kind.__name__}", **kind.model_json_schema()}
    return {"content": {"application/json": {"schema": schema}}, "required": True}


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    body = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, headers=headers, media_type="application/json")


def _error(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers, "application/json")


async def _respond_to(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)  # nobody reads it; it is counted
    if isinstance(error, ApiError):
        return _error(error)
    if isinstance(error, EchoError):
        return _error(api_error(error, request.url.path))
    if isinstance(error, HTTPException):
        path = request.url.path[:80]
        got = f"{request.method} {path}"
        message = f"endpoint: expected one of this API, got {got}"
        return _error(ApiError(error.status_code, message, headers=error.headers))
    return _error(internal())


def _seeded(inputs: dict[str, Any], choice: int) -> dict[str, Any]:
    """The inputs of one of several answers, which would all be the same with one seed."""
    if choice == 0 or "seed" not in inputs:
        return inputs
    return {**inputs, "seed": (inputs["seed"] + choice) % 2**64}


def _estimated_read(inputs: Inputs) -> int:
    """About how many tokens an LLM reads for a request."""
    return sum(_estimated(len(inputs[name])) for name in _READ if name in inputs)


def _written(part: Piece | Final) -> int:
    """Characters that an LLM has written, those of calls of tools included."""
    return len(part.text) + len(part.tool_calls)


def _estimated(chars: int) -> int:
    """About how many tokens a text of so many characters has."""
    return -(-chars // _CHARS_PER_TOKEN)
