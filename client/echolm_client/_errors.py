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

Over HTTP the kind of an error is known for ``generate`` and ``rate`` but not for
``stream``: Triton reports every error of a streaming model there in the same way, so that
it arrives as :class:`ServerError`. gRPC keeps the kind everywhere.

Names carry no "Error" (lint rule N818): as in httpx, they say what happened.
"""

from __future__ import annotations


class EchoLMError(Exception):
    """Base of all errors of this package.

    Attributes:
        status: what the server called it: a gRPC code's name (``INVALID_ARGUMENT``), an HTTP
            status (``503``), or empty if it did not come from the server.
    """

    def __init__(self, message: str, status: str = "") -> None:
        super().__init__(message)
        self.status = status


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


def from_status(status: str, message: str) -> EchoLMError:
    """The error for a status.

    Args:
        status: a gRPC code (``UNAVAILABLE`` or ``StatusCode.UNAVAILABLE``) or an HTTP status.
        message: the server's message.
    """
    status = status.removeprefix("StatusCode.")
    kind = _BY_STATUS.get(status, ServerError)
    return kind(message or f"the server gave no reason (status {status})", status)


def from_stream(message: str) -> EchoLMError:
    """The error for a message that came without a status, in a stream."""
    if ": expected " in message:
        return InvalidRequest(message, "INVALID_ARGUMENT")
    if message.startswith("no LLM answered") or " in flight already" in message:
        return Unavailable(message, "UNAVAILABLE")
    return ServerError(message, "UNKNOWN")
