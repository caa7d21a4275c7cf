"""Checks a request of the LLM-API contract and turns it into a :class:`GenerationRequest`.

Pure: tensors come as flat lists of Python values by name, so all of it is tested without Triton.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from echolm.engines.base import GenerationRequest, SamplingParams
from echolm.errors import InvalidRequestError

Inputs = Mapping[str, Sequence[Any]]
_DEFAULTS = SamplingParams()
_MAX_STOP_WORDS = 64
_UINT64_MAX = 2**64 - 1


@dataclass(frozen=True)
class LLMRequest:
    """A checked request.

    Attributes:
        generation: for the engine.
        echo: whether the answer starts with the prompt.
        return_finish_reason: and the other ``return_*``: outputs to give besides the text.
    """

    generation: GenerationRequest
    echo: bool
    return_finish_reason: bool
    return_stop_reason: bool
    return_cumulative_logprob: bool


def is_stop(inputs: Inputs) -> bool:
    """Whether the request only cancels the one in flight that has its id."""
    return _flag(inputs, "stop")


def parse_request(request_id: str, inputs: Inputs) -> LLMRequest:
    """Check all inputs.

    Args:
        request_id: unique id for the engine.
        inputs: the elements of each input that the caller sent.

    Raises:
        InvalidRequestError: names the tensor, what was expected and what came.
    """
    text_inputs = inputs.get("text_input", ())
    if len(text_inputs) != 1:
        raise InvalidRequestError.of("text_input", "one element", f"{len(text_inputs)} elements")
    prompt = _text(text_inputs[0], "text_input")
    if not prompt:
        raise InvalidRequestError.of("text_input", "text that is not empty", "empty text")
    if _scalar(inputs, "sampling_param_best_of", 1) != 1:
        raise InvalidRequestError.of(
            "sampling_param_best_of",
            "1 (one sequence per request)",
            _scalar(inputs, "sampling_param_best_of", 1),
            "leave it out",
        )
    logprobs = _flag(inputs, "return_cumulative_logprob")
    return LLMRequest(
        generation=GenerationRequest(
            request_id=request_id,
            prompt=prompt,
            sampling=_sampling(inputs, logprobs),
            streaming=_flag(inputs, "streaming"),
        ),
        echo=not _flag(inputs, "sampling_param_exclude_input_from_output"),
        return_finish_reason=_flag(inputs, "return_finish_reason"),
        return_stop_reason=_flag(inputs, "return_stop_reason"),
        return_cumulative_logprob=logprobs,
    )


def _sampling(inputs: Inputs, logprobs: bool) -> SamplingParams:
    max_tokens = int(_scalar(inputs, "sampling_param_max_tokens", _DEFAULTS.max_tokens))
    if max_tokens <= 0:
        raise InvalidRequestError.of("sampling_param_max_tokens", "an integer > 0", max_tokens)
    temperature = _number(inputs, "sampling_param_temperature", _DEFAULTS.temperature)
    if temperature < 0:
        raise InvalidRequestError.of(
            "sampling_param_temperature", "a number >= 0 (0 is greedy)", temperature
        )
    top_p = _number(inputs, "sampling_param_top_p", _DEFAULTS.top_p)
    if not 0 < top_p <= 1:
        raise InvalidRequestError.of("sampling_param_top_p", "a number in (0, 1]", top_p)
    top_k = int(_scalar(inputs, "sampling_param_top_k", _DEFAULTS.top_k))
    if top_k < 0:
        raise InvalidRequestError.of("sampling_param_top_k", "an integer >= 0 (0 is off)", top_k)
    seed = _scalar(inputs, "sampling_param_seed", None)
    if seed is not None and not 0 <= seed <= _UINT64_MAX:
        raise InvalidRequestError.of("sampling_param_seed", "an integer in [0, 2**64)", seed)
    penalties = {}
    for name in ("frequency_penalty", "presence_penalty"):
        value = _number(inputs, f"sampling_param_{name}", 0.0)
        if not -2 <= value <= 2:
            raise InvalidRequestError.of(f"sampling_param_{name}", "a number in [-2, 2]", value)
        penalties[name] = value
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=None if seed is None else int(seed),
        stop=_stop_words(inputs),
        logprobs=logprobs,
        **penalties,
    )


def _stop_words(inputs: Inputs) -> tuple[str, ...]:
    name = "sampling_param_stop"
    words = tuple(_text(word, name) for word in inputs.get(name, ()))
    if len(words) > _MAX_STOP_WORDS:
        raise InvalidRequestError.of(name, f"at most {_MAX_STOP_WORDS} elements", len(words))
    if "" in words:
        raise InvalidRequestError.of(name, "stop words that are not empty", "an empty one")
    return words


def _scalar(inputs: Inputs, name: str, default: Any) -> Any:
    values = inputs.get(name)
    if values is None:
        return default
    if len(values) != 1:
        raise InvalidRequestError.of(name, "one element", f"{len(values)} elements")
    return values[0]


def _number(inputs: Inputs, name: str, default: float) -> float:
    value = float(_scalar(inputs, name, default))
    if not math.isfinite(value):
        raise InvalidRequestError.of(name, "a finite number", value)
    return value


def _flag(inputs: Inputs, name: str) -> bool:
    return bool(_scalar(inputs, name, False))


def _text(value: bytes | str, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError.of(
            name, "UTF-8 text", f"byte 0x{value[error.start]:02x} at offset {error.start}"
        ) from error
