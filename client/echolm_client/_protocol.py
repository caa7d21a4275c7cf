"""EchoLM's tensors: requests as named arrays, and answers out of named arrays.

Pure: nothing here does I/O or knows whether gRPC or HTTP carries the tensors.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echolm_client._errors import InvalidRequest, ServerError
from echolm_client._types import Answer, GenerateOptions, Message

ECHOLM = "echolm"
ECHOLM_STREAM = "echolm_stream"
FEEDBACK = "feedback"

OPTIONS: dict[str, str] = {
    "max_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "top_k": "INT32",
    "seed": "UINT64",
    "stop_words": "BYTES",
    "bad_words": "BYTES",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "min_tokens": "INT32",
    "system_prompt": "BYTES",
    "tenant": "BYTES",
    "cache_control": "BYTES",
    "llm": "BYTES",
    "cost_weight": "FP32",
}
"""Datatype of each optional input of ``echolm`` that is not only there for clients of NVIDIA's
models or of OpenAI's API."""

OUTPUTS = (
    "text_output",
    "llm",
    "example_ids",
    "predicted_quality",
    "solicit_feedback",
    "feedback_token",
    "degraded",
    "finish_reason",
    "num_input_tokens",
    "num_output_tokens",
)
"""Outputs of ``echolm`` that an :class:`Answer` is made of."""

NUMPY_TYPES: dict[str, Any] = {
    "BYTES": np.object_,
    "BOOL": np.bool_,
    "FP32": np.float32,
    "INT32": np.int32,
    "UINT64": np.uint64,
}

Outputs = Mapping[str, NDArray[Any]]
"""Tensors of one response. BYTES elements are ``bytes`` or ``str``."""


@dataclass(frozen=True)
class InputTensor:
    """One input: its array has the batch dimension, [1, n]."""

    name: str
    datatype: str
    array: NDArray[Any]


@dataclass(frozen=True)
class Call:
    """One request to one model."""

    model: str
    inputs: tuple[InputTensor, ...]


def generate_call(
    text: str | None,
    options: GenerateOptions,
    *,
    messages: Sequence[Message] | None = None,
    stream: bool = False,
) -> Call:
    """The request for an answer.

    Args:
        text, messages: one of them.
        options: only those that are not None are sent.
        stream: whether the answer is to come in pieces.

    Raises:
        InvalidRequest: a value cannot be expressed in its tensor's type. Whether it makes
            sense is the server's to say.
        TypeError: there is no such option, or both text and messages are given, or neither.
    """
    if (text is None) == (messages is None):
        raise TypeError("expected either a text or messages")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; expected some of {sorted(OPTIONS)}")
    inputs = [
        _tensor("text_input", "BYTES", [text])
        if messages is None
        else _tensor("messages", "BYTES", [_json(messages)])
    ]
    for name, datatype in OPTIONS.items():
        value: Any = options.get(name)
        if value is None:
            continue
        if name in ("stop_words", "bad_words"):
            if isinstance(value, str):
                raise InvalidRequest(f"{name}: expected a list of strings, got {value!r}")
            # Triton takes no empty BYTES tensor from every client: none is the same as absent.
            if not (value := list(value)):
                continue
        else:
            value = [value]
        inputs.append(_tensor(name, datatype, value))
    if stream:
        inputs.append(_tensor("stream", "BOOL", [True]))
    return Call(ECHOLM_STREAM if stream else ECHOLM, tuple(inputs))


def _json(messages: Sequence[Message]) -> str:
    try:
        return json.dumps(list(messages))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"messages: expected what JSON can express, got {error}") from None


def rating_call(rated: str | Answer, score: float, tenant: str | None = None) -> Call:
    """The request that rates an answer."""
    token = _token(rated)
    return _feedback(tenant, token, _tensor("score", "FP32", [score]))


def preference_call(better: str | Answer, over: str | Answer, tenant: str | None = None) -> Call:
    """The request that says which of two answers is better."""
    return _feedback(tenant, _token(better), _token(over, "preferred_over"))


def _feedback(tenant: str | None, *inputs: InputTensor) -> Call:
    named = () if tenant is None else (_tensor("tenant", "BYTES", [tenant]),)
    return Call(FEEDBACK, (*inputs, *named))


def accepted(outputs: Outputs) -> bool:
    """Whether the ``feedback`` model took the rating."""
    if "accepted" not in outputs:
        raise ServerError(f"feedback: expected an output 'accepted', got {sorted(outputs)}")
    return bool(_first(outputs, "accepted", False))


class Assembly:
    """Makes one :class:`Answer` of a request's responses: of one, or of a stream of them."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._latest: dict[str, NDArray[Any]] = {}

    def add(self, outputs: Outputs) -> str:
        """Take the next response; return the text in it, which may be empty."""
        # Every response may carry all outputs; only the last one's are final.
        self._latest.update(outputs)
        piece = _text(outputs, "text_output")
        self._pieces.append(piece)
        return piece

    def answer(self, latency_s: float) -> Answer:
        """The complete answer.

        Raises:
            ServerError: no response carried any text output.
        """
        latest = self._latest
        if "text_output" not in latest:
            raise ServerError(f"expected an output 'text_output', got {sorted(latest) or 'none'}")
        return Answer(
            text="".join(self._pieces),
            llm=_text(latest, "llm"),
            # Negative ids only fill up rows of a batch.
            example_ids=tuple(
                int(i) for i in latest.get("example_ids", np.empty(0)).reshape(-1) if i >= 0
            ),
            predicted_quality=float(_first(latest, "predicted_quality", float("nan"))),
            solicit_feedback=bool(_first(latest, "solicit_feedback", False)),
            feedback_token=_text(latest, "feedback_token"),
            degraded=_text(latest, "degraded"),
            finish_reason=_text(latest, "finish_reason"),
            num_input_tokens=int(_first(latest, "num_input_tokens", 0)),
            num_output_tokens=int(_first(latest, "num_output_tokens", 0)),
            latency_s=latency_s,
        )


def _token(rated: str | Answer, name: str = "feedback_token") -> InputTensor:
    token = rated.feedback_token if isinstance(rated, Answer) else rated
    if not token:
        raise InvalidRequest(f"{name}: expected an answer's feedback token, got none")
    return _tensor(name, "BYTES", [token])


def _tensor(name: str, datatype: str, values: list[Any]) -> InputTensor:
    encode = {"BYTES": _bytes, "FP32": _float}.get(datatype, _integer)
    array = np.empty((1, len(values)), dtype=NUMPY_TYPES[datatype])
    for i, value in enumerate(values):
        array[0, i] = value if datatype == "BOOL" else encode(name, datatype, value)
    return InputTensor(name, datatype, array)


def _bytes(name: str, datatype: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: expected a string, got {type(value).__name__}")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{name}: expected text that UTF-8 can encode, got U+{ord(value[error.start]):04X} "
            f"at position {error.start}"
        ) from None


def _integer(name: str, datatype: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidRequest(f"{name}: expected an integer, got {value!r}") from None
    limits = np.iinfo(NUMPY_TYPES[datatype])
    if not limits.min <= number <= limits.max:
        raise InvalidRequest(
            f"{name}: expected an integer from {limits.min} to {limits.max}, got {number}"
        )
    return number


def _float(name: str, datatype: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{name}: expected a number, got {value!r}") from None


def _first(outputs: Outputs, name: str, default: Any) -> Any:
    array = outputs.get(name)
    return default if array is None or array.size == 0 else array.reshape(-1)[0]


def _text(outputs: Outputs, name: str) -> str:
    value = _first(outputs, name, "")
    return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
