"""Requests of OpenAI's API, and the inputs of ``echolm`` that they become."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from echolm.conversation import read_messages
from echolm.gateway.errors import ApiError, unsupported
from echolm.primitives import MAX_TOP_LOGPROBS

MAX_INPUTS = 2_048
"""Most texts in one request for embeddings, as in OpenAI's API."""

_Request = TypeVar("_Request", bound="Body")

_WEIGHTED = re.compile(r"-(\d{1,3}(?:\.\d{1,6})?)")
_IGNORED = ("safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True,),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "suffix": ("",),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's API that nothing here can do, with the values, beside null, that ask for
nothing."""


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Function(Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _with_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, which needs one")
        return self


Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=64)]


class Generation(Body):
    """What ``/v1/chat/completions`` and ``/v1/completions`` share.

    Attributes:
        user, metadata: whatever they are, they change nothing.
        top_k: as engines have it; -1 and 0 set no bound.
        min_tokens, ignore_eos, repetition_penalty: as vLLM has them.
        tenant, cache_control, llm: inputs of ``echolm``.
    """

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    stop: str | Stop | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool | None = None
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    user: str | None = None
    metadata: dict[str, Any] | None = None
    tenant: str | None = Field(None, min_length=1, max_length=256)
    cache_control: Literal["default", "no-store", "no-examples", "no-cache"] | None = None
    llm: str | None = None

    def new_tokens(self, default: int) -> int:
        """Most new tokens of one answer."""
        return self.max_tokens or default

    @property
    def may_be_stored(self) -> bool:
        """Whether the interaction may become an example."""
        return True


class ChatRequest(Generation):
    """A body of ``/v1/chat/completions``."""

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: str | dict[str, Any] | None = None
    store: bool | None = None

    def new_tokens(self, default: int) -> int:
        return self.max_completion_tokens or super().new_tokens(default)

    @property
    def may_be_stored(self) -> bool:
        return self.store is not False


class CompletionRequest(Generation):
    """A body of ``/v1/completions``."""

    prompt: str | list[str]
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    @field_validator("prompt", mode="before")
    @classmethod
    def _of_texts(cls, value: Any) -> Any:
        return _no_tokens(value)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class EmbeddingRequest(Body):
    """A body of ``/v1/embeddings``."""

    model: str
    input: str | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _of_texts(cls, value: Any) -> Any:
        return _no_tokens(value, " (LangChain: check_embedding_ctx_length=False)")

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class FeedbackRequest(Body):
    """A body of ``/v1/feedback``: an answer, by its token or its response's id, and its worth.

    Attributes:
        index: which choice of the response.
        preferred_over: token, or response id, of an answer that is worse.
    """

    feedback_token: str | None = None
    id: str | None = None
    index: int = Field(0, ge=0)
    score: float | None = Field(None, ge=0, le=1)
    preferred_over: str | None = None
    tenant: str | None = Field(None, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _complete(self) -> FeedbackRequest:
        if (self.feedback_token is None) == (self.id is None):
            raise ValueError("expected either feedback_token or id")
        if (self.score is None) == (self.preferred_over is None):
            raise ValueError("expected either score or preferred_over")
        return self


def _no_tokens(value: Any, hint: str = "") -> Any:
    """The value; ValueError if it is ids of tokens, of which nobody here knows the tokenizer."""
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise ValueError(f"text or texts instead of token ids{hint}")
    return value


def parse(kind: type[_Request], body: dict[str, Any]) -> _Request:
    """The request that a body holds; ApiError, which names the field, if something is wrong."""
    fields = dict(body)
    if issubclass(kind, Generation):
        for name in _IGNORED:
            fields.pop(name, None)
        for name in _NEUTRAL.keys() & fields.keys():
            value = fields.pop(name)
            if name == "parallel_tool_calls" and not fields.get("tools"):
                continue
            if value is not None and value not in _NEUTRAL[name]:
                raise unsupported(name, "nothing here can do what it asks for")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _explained(error) from error


def _explained(error: ValidationError) -> ApiError:
    # Of the alternatives of a union the one whose error lies deepest fits best.
    problem = max(error.errors(include_url=False), key=lambda one: len(_place(one["loc"])))
    place = _place(problem["loc"])
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")
    if problem["type"] == "missing":
        message = f"{param}: expected a value, got none"
        return ApiError(400, message, code="missing_required_parameter", param=param)
    if problem["type"] == "extra_forbidden":
        message = f"{param}: expected fields of OpenAI's API, got one that is not known here"
        mend = "put what is yours into metadata"
        return ApiError(400, f"{message}; {mend}", code="unknown_parameter", param=param)
    if not param:
        return ApiError(400, f"body: {problem['msg']}")
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return ApiError.of(param, expected, problem["input"], code="invalid_value")


def _place(loc: Sequence[int | str]) -> list[int | str]:
    """Where an error is, without the names of a union's types."""
    types = ("str", "constrained-str")
    return [part for part in loc if not (isinstance(part, str) and (part in types or "[" in part))]


def model_inputs(request: Generation, logical: str, llms: Sequence[str]) -> dict[str, Any]:
    """The inputs that ``model`` and ``llm`` of a request ask for; ApiError 404: there is none."""
    if request.model in llms:
        if request.llm not in (None, "auto", request.model):
            raise ApiError.of("llm", f"{request.model!r}, the model, or none", request.llm)
        return {"llm": request.model}
    inputs: dict[str, Any] = {"llm": request.llm} if request.llm else {}
    if request.model == logical:
        return inputs
    if (weight := cost_weight_of(request.model, logical)) is None:
        raise unknown_model(request.model)
    return {**inputs, "cost_weight": weight}


def cost_weight_of(model: str, logical: str) -> float | None:
    """The cost weight n in the name ``echolm-n``; None if it is no such name."""
    found = _WEIGHTED.fullmatch(model.removeprefix(logical))
    return float(found[1]) if found and model.startswith(logical) else None


def unknown_model(name: str) -> ApiError:
    """The error of a model that is not there."""
    message = f"model: expected one of GET /v1/models, got {name[:80]!r}"
    return ApiError(404, message, code="model_not_found", param="model")


def _common_inputs(request: Generation) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    if stop and stop != [""]:
        inputs["stop_words"] = stop
    for name in ("temperature", "top_p", "top_k", "max_tokens"):
        if (value := getattr(request, name)) is not None:
            inputs[name] = max(value, 0) if name == "top_k" else value
    if request.seed is not None:
        inputs["seed"] = request.seed % 2**64
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(request, name):
            inputs[name] = value
    fewest = request.min_tokens
    if request.ignore_eos and not (fewest := request.new_tokens(0)):
        raise ApiError.of("ignore_eos", "max_tokens beside it", True)
    if fewest:
        inputs["min_tokens"] = fewest
    if request.repetition_penalty not in (None, 1):
        inputs["repetition_penalty"] = request.repetition_penalty
    cache_control: str = request.cache_control or "default"
    if not request.may_be_stored:
        narrower = {"default": "no-store", "no-examples": "no-cache"}
        cache_control = narrower.get(cache_control, cache_control)
    if cache_control != "default":
        inputs["cache_control"] = cache_control
    return inputs


def completion_inputs(request: CompletionRequest) -> dict[str, Any]:
    """Inputs of ``echolm`` but for the text, the model and the tenant."""
    inputs = _common_inputs(request)
    return inputs if request.logprobs is None else {**inputs, "logprobs": request.logprobs}


def chat_inputs(request: ChatRequest) -> dict[str, Any]:
    """Inputs of ``echolm`` but for the model and the tenant.

    Raises:
        ApiError: fields contradict each other.
        InvalidRequestError: the messages are no conversation.
    """
    messages = orjson.dumps(request.messages)
    read_messages(messages)
    inputs = {**_common_inputs(request), "messages": messages}
    if request.max_completion_tokens is not None:
        if request.max_tokens not in (None, request.max_completion_tokens):
            raise ApiError.of("max_tokens", "none beside max_completion_tokens", request.max_tokens)
        inputs["max_tokens"] = request.max_completion_tokens
    if request.logprobs:
        inputs["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise ApiError.of("top_logprobs", "logprobs: true beside it", request.top_logprobs)
    if request.response_format is not None and request.response_format.type != "text":
        inputs["response_format"] = orjson.dumps(_plain(request.response_format))
    if request.tools:
        inputs["tools"] = orjson.dumps([_plain(tool) for tool in request.tools])
        if request.tool_choice is not None:
            inputs["tool_choice"] = orjson.dumps(request.tool_choice)
    elif request.tool_choice not in (None, "none", "auto"):
        raise ApiError.of("tool_choice", "tools beside it", request.tool_choice)
    return inputs


def _plain(body: Body) -> dict[str, Any]:
    return body.model_dump(exclude_none=True)
