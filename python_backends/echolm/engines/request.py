"""Checks a request of the LLM-API contract and turns it into a :class:`GenerationRequest`.

Pure: tensors come as flat lists of Python values by name, so all of it is tested without Triton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from echolm.contracts import STREAM_INTERVAL_MS
from echolm.engines.base import GenerationRequest
from echolm.errors import InvalidRequestError
from echolm.primitives import Sampling, decode

Inputs = Mapping[str, Sequence[Any]]
_SAMPLING = {
    **{field.name: f"sampling_param_{field.name}" for field in fields(Sampling)},
    "embedding_bias": "embedding_bias_weights",
    "guide_type": "guided_decoding_guide_type",
    "guide": "guided_decoding_guide",
    "logprobs": "return_log_probs",
    "top_logprobs": "logprobs",
    **{name: name for name in ("tools", "tool_choice", "response_format")},
}
"""The tensor of each field; those of ``embedding_bias`` are two."""
_WORDS = ("stop", "bad_words")
_TEXTS = ("guide_type", "guide", "tools", "tool_choice", "response_format")
_MAX_STOP_WORDS = 64


@dataclass(frozen=True)
class LLMRequest:
    """A checked request.

    Attributes:
        generation: for the engine.
        echo: whether the answer starts with the prompt.
        stream_interval_s: time for which pieces gather; 0: each goes out by itself.
        return_finish_reason, …: whether this output is wanted besides the text.
    """

    generation: GenerationRequest
    echo: bool
    return_finish_reason: bool
    return_stop_reason: bool
    return_cumulative_logprob: bool
    return_log_probs: bool
    stream_interval_s: float = 0.0


def is_stop(inputs: Inputs) -> bool:
    """Whether the request only cancels the request in flight that has the same id."""
    return _flag(inputs, "stop")


def parse_request(
    request_id: str, inputs: Inputs, parameters: Mapping[str, Any] | None = None
) -> LLMRequest:
    """Check the elements of each input that the caller sent; ``request_id`` is for the engine.

    Args:
        parameters: of the request, beside its tensors.

    Raises:
        InvalidRequestError: names the tensor or parameter, what was expected and what came.
    """
    prompt = decode(scalar({"text_input": (), **inputs}, "text_input"), "text_input")
    if not prompt:
        raise InvalidRequestError.of("text_input", "text that is not empty", "empty text")
    if (best_of := scalar(inputs, "sampling_param_best_of", 1)) != 1:
        raise InvalidRequestError.of(
            "sampling_param_best_of", "1 (one sequence per request)", best_of, "leave it out"
        )
    cumulative, each = (
        _flag(inputs, name) for name in ("return_cumulative_logprob", "return_log_probs")
    )
    sampling = replace(_sampling(inputs), logprobs=cumulative or each)
    streaming = _flag(inputs, "streaming")
    special = _flag(inputs, "sampling_param_add_special_tokens", True)
    return LLMRequest(
        generation=GenerationRequest(request_id, prompt, sampling, streaming, special),
        echo=not _flag(inputs, "sampling_param_exclude_input_from_output"),
        return_finish_reason=_flag(inputs, "return_finish_reason"),
        return_stop_reason=_flag(inputs, "return_stop_reason"),
        return_cumulative_logprob=cumulative,
        return_log_probs=each,
        stream_interval_s=_interval_s(parameters or {}),
    )


def _interval_s(parameters: Mapping[str, Any]) -> float:
    value = parameters.get(STREAM_INTERVAL_MS, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1_000:
        raise InvalidRequestError.of(STREAM_INTERVAL_MS, "a number from 0 to 1000", repr(value))
    return value / 1_000


def _sampling(inputs: Inputs) -> Sampling:
    lists = {*_WORDS, "embedding_bias"}
    values = {
        field: scalar(inputs, name) for field, name in _SAMPLING.items() if field not in lists
    }
    for field in _WORDS:
        values[field] = _words(inputs, _SAMPLING[field])
    for field in _TEXTS:
        if values[field] is not None:
            values[field] = decode(values[field], _SAMPLING[field])
    words, weights = (
        _words(inputs, "embedding_bias_words"),
        inputs.get("embedding_bias_weights", ()),
    )
    if len(words) != len(weights):
        expected = f"as many as embedding_bias_words ({len(words)})"
        raise InvalidRequestError.of("embedding_bias_weights", expected, len(weights))
    values["embedding_bias"] = tuple(zip(words, weights, strict=True))
    return Sampling.checked(values, _SAMPLING, max_stop_words=_MAX_STOP_WORDS)


def _words(inputs: Inputs, name: str) -> tuple[str, ...]:
    return tuple(decode(word, name) for word in inputs.get(name, ()))


def scalar(inputs: Inputs, name: str, default: Any = None) -> Any:
    """The only element of an input; InvalidRequestError if it has none or several."""
    values = inputs.get(name)
    if values is None:
        return default
    if len(values) != 1:
        raise InvalidRequestError.of(name, "one element", f"{len(values)} elements")
    return values[0]


def _flag(inputs: Inputs, name: str, default: bool = False) -> bool:
    return bool(scalar(inputs, name, default))
