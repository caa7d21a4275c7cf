"""Errors as OpenAI's API gives them, and what EchoLM's own errors are there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from echolm.errors import (
    CancelledError,
    ContextLengthError,
    EchoError,
    InvalidRequestError,
    UnavailableError,
    public_message,
)

INVALID = "invalid_request_error"
_SERVER = "server_error"
_RETRY_AFTER_S = 1

CLIENT_GONE = 499
"""Status of a request whose client went away; it is seen in metrics only."""

_SUBJECT = re.compile(r"([a-z_]+(?:\[\d+\]|\.[a-z_]+)*): expected ")
_PARAMS = {"stop_words": "stop", "sampling_param_max_tokens": "max_tokens"}
"""What OpenAI's API calls an input of ``echolm``, or of an LLM, that has another name."""
_TEXTS = {"/v1/completions": "prompt"}
"""What ``text_input`` is called, by endpoint; ``messages`` at all others."""
_NAMES = re.compile(rf"\b({'|'.join(_PARAMS)}|text_input)\b")
_TOO_LONG = "Input tokens exceed the configured limit"
"""Words of OpenAI's own, by which LangChain and LiteLLM tell this error from others."""


class ApiError(Exception):
    """An error response.

    Attributes:
        status: of HTTP.
        kind: OpenAI's ``type``.
        code: for programs; None where OpenAI has none.
        param: the field that is wrong.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, param: str, expected: str, got: Any, mend: str = "", **more: Any) -> ApiError:
        """The error of a field with a wrong value."""
        message = str(InvalidRequestError.of(param, expected, got, mend))
        return cls(400, message, param=param, **more)

    def body(self) -> bytes:
        """OpenAI's JSON."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})


def unsupported(param: str, why: str) -> ApiError:
    """The error of a field of OpenAI's API that cannot be used here."""
    message = f"{param}: expected it to be left out, got a value; {why}"
    return ApiError(400, message, code="unsupported_parameter", param=param)


def too_many(message: str, kind: str, code: str, wait_s: float) -> ApiError:
    """The error of a caller that has used up a limit; it may come again after ``wait_s``."""
    headers = {"retry-after": str(max(1, int(-(-wait_s // 1))))}
    return ApiError(429, message, kind=kind, code=code, headers=headers)


def api_error(error: EchoError, path: str) -> ApiError:
    """What an error of EchoLM is in OpenAI's API, for a request to the endpoint ``path``."""
    message, text = public_message(error), _TEXTS.get(path, "messages")
    found = _SUBJECT.match(message)
    # What follows the subject may repeat what the caller has sent, but never where it is too long.
    end = len(message) if isinstance(error, ContextLengthError) else found.end() if found else 0
    own = _NAMES.sub(lambda name: _PARAMS.get(name[0], text), message[:end])
    message = own + message[end:]
    found = _SUBJECT.match(message)
    param = found[1] if found else None
    if isinstance(error, ContextLengthError):
        message = f"{_TOO_LONG}: {message}"
        return ApiError(400, message, code="context_length_exceeded", param=param or text)
    if isinstance(error, InvalidRequestError):
        return ApiError(400, message, code="invalid_value", param=param)
    if isinstance(error, UnavailableError):
        headers = {"retry-after": str(_RETRY_AFTER_S)}
        return ApiError(503, message, kind=_SERVER, code="unavailable", headers=headers)
    if isinstance(error, CancelledError):
        return ApiError(CLIENT_GONE, message, kind=_SERVER, code=error.code)
    return internal()


def internal() -> ApiError:
    """What a caller learns of a bug."""
    message = "internal error; see the server's log"
    return ApiError(500, message, kind=_SERVER, code="internal_error")
