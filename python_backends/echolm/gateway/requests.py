"""Requests of OpenAI's API, and the inputs of ``echolm`` that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from echolm.conversation import read_messages
from echolm.gateway.backend import Signature
from echolm.gateway.errors import GUIDE, GUIDE_TYPE, ApiError, unsupported

MAX_INPUTS = 2_048
"""Most texts in one request for embeddings, as in OpenAI's API."""

_Request = TypeVar("_Request", bound="Body")

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
    top_logprobs: int | None = Field(None, ge=0, le=20)
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
    logprobs: int | None = None

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


def model_choice(request: Generation, logical: str, llms: Sequence[str]) -> str:
    """The input ``llm`` that ``model`` and ``llm`` of a request ask for; empty: none."""
    if request.model == logical:
        return request.llm or ""
    if request.model not in llms:
        raise unknown_model(request.model)
    if request.llm not in (None, "auto", request.model):
        raise ApiError.of("llm", f"{request.model!r}, the model, or none", request.llm)
    return request.model


def unknown_model(name: str) -> ApiError:
    """The error of a model that is not there."""
    message = f"model: expected one of GET /v1/models, got {name[:80]!r}"
    return ApiError(404, message, code="model_not_found", param="model")


def common_inputs(request: Generation, signature: Signature, llm: str) -> dict[str, Any]:
    """Inputs of ``echolm`` but for the text and the tenant.

    Raises:
        ApiError: the request asks for what no model can do.
    """
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
            _pass(inputs, signature, name, value)
    fewest = request.min_tokens
    if request.ignore_eos and not (fewest := request.new_tokens(0)):
        raise ApiError.of("ignore_eos", "max_tokens beside it", True)
    if fewest:
        _pass(inputs, signature, "min_tokens", fewest)
    if request.repetition_penalty not in (None, 1):
        _pass(inputs, signature, "repetition_penalty", request.repetition_penalty)
    if llm:
        inputs["llm"] = llm
    cache_control: str = request.cache_control or "default"
    if not request.may_be_stored:
        narrower = {"default": "no-store", "no-examples": "no-cache"}
        cache_control = narrower.get(cache_control, cache_control)
    if cache_control != "default":
        inputs["cache_control"] = cache_control
    return inputs


def chat_inputs(request: ChatRequest, signature: Signature, llm: str) -> dict[str, Any]:
    """Inputs of ``echolm`` but for the tenant.

    Raises:
        ApiError: the request asks for what no model can do.
        InvalidRequestError: the messages are no conversation.
    """
    inputs = common_inputs(request, signature, llm)
    inputs.update(_conversation(request, signature))
    if request.max_completion_tokens is not None:
        if request.max_tokens not in (None, request.max_completion_tokens):
            raise ApiError.of("max_tokens", "none beside max_completion_tokens", request.max_tokens)
        inputs["max_tokens"] = request.max_completion_tokens
    if request.logprobs:
        _pass(inputs, signature, "logprobs", request.top_logprobs or 0)
    elif request.top_logprobs:
        raise ApiError.of("top_logprobs", "logprobs: true beside it", request.top_logprobs)
    if request.response_format is not None and request.response_format.type != "text":
        _pass_format(inputs, signature, request.response_format)
    if request.tools:
        _pass(inputs, signature, "tools", orjson.dumps([_plain(tool) for tool in request.tools]))
        if request.tool_choice is not None:
            _pass(inputs, signature, "tool_choice", orjson.dumps(request.tool_choice))
    elif request.tool_choice not in (None, "none", "auto"):
        raise ApiError.of("tool_choice", "tools beside it", request.tool_choice)
    return inputs


def _conversation(request: ChatRequest, signature: Signature) -> dict[str, Any]:
    messages = orjson.dumps(request.messages)
    conversation = read_messages(messages)
    if "messages" in signature.inputs:
        return {"messages": messages}
    if len(conversation.turns) > 1:
        raise unsupported("messages", "the models here take one message and a system prompt")
    inputs = {"text_input": conversation.turns[0].text}
    if conversation.system_prompt:
        inputs["system_prompt"] = conversation.system_prompt
    return inputs


def _pass(inputs: dict[str, Any], signature: Signature, name: str, value: Any) -> None:
    if name not in signature.inputs:
        raise unsupported(name, "no model here takes it")
    inputs[name] = value


def _pass_format(inputs: dict[str, Any], signature: Signature, asked: ResponseFormat) -> None:
    """Pass it as it is, or as TensorRT-LLM's guided decoding has it."""
    if "response_format" in signature.inputs or GUIDE_TYPE not in signature.inputs:
        _pass(inputs, signature, "response_format", orjson.dumps(_plain(asked)))
    elif asked.json_schema is None:
        inputs[GUIDE_TYPE] = "json"
    else:
        schema = asked.json_schema.get("schema")
        if not isinstance(schema, dict):
            got = type(schema).__name__
            raise ApiError.of("response_format.json_schema.schema", "an object", got)
        inputs.update({GUIDE_TYPE: "json_schema", GUIDE: orjson.dumps(schema)})


def _plain(body: Body) -> dict[str, Any]:
    return body.model_dump(exclude_none=True)
