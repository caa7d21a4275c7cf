"""Exceptions of the client.

::

    EchoLMError
    ├── InvalidRequest   the request is wrong; sending it again unchanged will fail again
    ├── Unavailable      no connection, or a part of the server does not answer; later it may
    ├── Timeout          no complete answer within the time allowed (also a ``TimeoutError``)
    ├── Cancelled        the server stopped, because the request was cancelled
    └── ServerError      anything else that the server reports

The client never sends a request twice by itself: an answer costs GPU time, and a request
that failed half-way may have been answered. Whoever retries should do so on
:class:`Unavailable` only.

EchoLM puts a machine-readable code before each of its error messages, ``[unavailable] …``, so
that the kind of its errors is known over gRPC and HTTP, in streams, too. Errors of Triton itself
carry no such code: their kind is that of the gRPC or HTTP status, and in a stream, where Triton
sends no status, they arrive as :class:`ServerError`.

Names carry no "Error" (lint rule N818): as in httpx, they say what happened.
"""

from __future__ import annotations

import re


class EchoLMError(Exception):
    """Base of all errors of this package.

    Attributes:
        status: what the transport called it: a gRPC code's name (``INVALID_ARGUMENT``), an HTTP
            status (``503``), or empty if the error came without one.
        code: what EchoLM called it, a key of ``CODES``; empty if it is not EchoLM's error.
    """

    def __init__(self, message: str, status: str = "", code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class InvalidRequest(EchoLMError):  # noqa: N818
    """The request is wrong; sending it again unchanged will fail again."""


class Unavailable(EchoLMError):  # noqa: N818
    """No connection, or a part of the server does not answer; later it may."""


class Timeout(EchoLMError, TimeoutError):  # noqa: N818
    """No complete answer came within the time allowed."""


class Cancelled(EchoLMError):  # noqa: N818
    """The server stopped because the request was cancelled."""


class ServerError(EchoLMError):
    """The server failed in a way that the request is not to blame for."""


CODES: dict[str, type[EchoLMError]] = {
    "invalid_request": InvalidRequest,
    "context_length": InvalidRequest,
    "unavailable": Unavailable,
    "cancelled": Cancelled,
    "configuration": ServerError,
    "internal": ServerError,
}
"""The error for each code that EchoLM puts before its messages."""

_CODE = re.compile(rf"\[({'|'.join(CODES)})\] ")

_BY_STATUS: dict[str, type[EchoLMError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Timeout,
    "CANCELLED": Cancelled,
    "400": InvalidRequest,
    "408": Timeout,
    "413": InvalidRequest,
    "429": Unavailable,
    "499": Cancelled,
    "502": Unavailable,
    "503": Unavailable,
    "504": Timeout,
}


def from_server(status: str | None, message: str) -> EchoLMError:
    """The error for what the server reports; its message is without the code.

    Args:
        status: a gRPC code (``UNAVAILABLE`` or ``StatusCode.UNAVAILABLE``) or an HTTP status;
            None in a stream, where Triton sends none.
        message: the server's message. Triton may put words of its own before the code.
    """
    status = (status or "").removeprefix("StatusCode.")
    if match := _CODE.search(message):
        code = match[1]
        return CODES[code](message[: match.start()] + message[match.end() :], status, code)
    kind = _BY_STATUS.get(status, ServerError)
    return kind(message or f"the server gave no reason (status {status or 'unknown'})", status)
