"""Exceptions of EchoLM.

::

    EchoError
    ├── ConfigurationError     the configuration or installation is wrong; nothing starts
    ├── InvalidRequestError    the caller sent something wrong      -> INVALID_ARGUMENT
    │   └── ContextLengthError the prompt does not fit the LLM      -> INVALID_ARGUMENT
    ├── UnavailableError       a part we depend on does not answer  -> UNAVAILABLE
    └── CancelledError         the client went away                 -> CANCELLED

Messages say what is wrong, what was expected, what was found and how to mend it.
They are shown to clients, so they never carry another client's data.
"""

from __future__ import annotations

from typing import Any


class EchoError(Exception):
    """Base of every error that EchoLM raises on purpose."""


class ConfigurationError(EchoError):
    """A setting, model file or installed package is wrong; the process must not start."""


class InvalidRequestError(EchoError):
    """The request is wrong; sending it again unchanged will fail again."""

    @classmethod
    def of(cls, subject: str, expected: str, got: Any, mend: str = "") -> InvalidRequestError:
        """Build the usual message.

        Args:
            subject: the tensor or field that is wrong.
            expected: what would have been right.
            got: what came; shortened, so that no message repeats a whole prompt.
            mend: what the caller can do, where ``expected`` does not say it.
        """
        shown = got if isinstance(got, str) else repr(got)
        if len(shown) > 80:
            shown = f"{shown[:80]}… ({len(shown)} characters)"
        return cls(f"{subject}: expected {expected}, got {shown}" + (f"; {mend}" if mend else ""))


class ContextLengthError(InvalidRequestError):
    """Prompt and requested output are longer than the LLM's context."""


class UnavailableError(EchoError):
    """A part we depend on (Milvus, an LLM) does not answer; later it may."""


class CancelledError(EchoError):
    """The client went away before its answer was complete."""
