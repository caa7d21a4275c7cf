"""Exceptions of EchoLM.

::

    EchoError                                                       code
    ├── ConfigurationError     the installation is wrong            configuration
    ├── InvalidRequestError    the caller sent something wrong      invalid_request
    │   └── ContextLengthError the prompt does not fit the LLM      context_length
    ├── UnavailableError       a part we depend on does not answer  unavailable
    └── CancelledError         the client went away                 cancelled

Messages say what is wrong, what was expected, what was found and how to mend it. They are shown to
clients, so they never carry another client's data, and lose what they say of the server's folders.

Between processes an error is the text ``[code] message``: Triton gives streamed errors no status,
and no status distinguishes a prompt that is too long from any other bad request. The code of any
other exception is ``internal``.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class EchoError(Exception):
    """Base of every error that EchoLM raises on purpose; programs know it by its code."""

    code: ClassVar[str] = "internal"


class ConfigurationError(EchoError):
    """A setting, model file or installed package is wrong; the process must not start."""

    code = "configuration"


class InvalidRequestError(EchoError):
    """The request is wrong; sending it again unchanged will fail again."""

    code = "invalid_request"

    @classmethod
    def of(cls, subject: str, expected: str, got: Any, mend: str = "") -> InvalidRequestError:
        """Build the usual message.

        Args:
            subject: the tensor or field that is wrong.
            got: what came; shortened, so that no message repeats a whole prompt.
            mend: what the caller can do, where ``expected`` does not say it.
        """
        shown = got if isinstance(got, str) else repr(got)
        if len(shown) > 80:
            shown = f"{shown[:80]}… ({len(shown)} characters)"
        return cls(f"{subject}: expected {expected}, got {shown}" + (f"; {mend}" if mend else ""))


class ContextLengthError(InvalidRequestError):
    """Prompt and requested output are longer than the LLM's context."""

    code = "context_length"


class UnavailableError(EchoError):
    """A part we depend on (Milvus, an LLM) does not answer; later it may."""

    code = "unavailable"


class CancelledError(EchoError):
    """The client went away before its answer was complete."""

    code = "cancelled"


_ALL: list[type[EchoError]] = [EchoError, *EchoError.__subclasses__(), ContextLengthError]
_KINDS = {kind.code: kind for kind in _ALL}
# Triton puts the request's id and the names of ensembles in front of what a step said.
_CODED = re.compile(
    rf"(?:\[request id: [^\]]*\] )?(?:in ensemble '[^']*', )*\[({'|'.join(_KINDS)})\] "
)


_FOLDERS = re.compile(r"(?<![\w/.])/(?!/)(?:[^\s'\":;,()/]+/)+")
"""In front of a file's name in an absolute path; not in a URL."""


def public_message(error: EchoError) -> str:
    """The message as a caller gets it.

    What we say of our own parts names files, of which a caller learns the name and not the folder.
    What a caller has sent is said to it as it is.
    """
    message = str(error)
    return message if isinstance(error, InvalidRequestError) else _FOLDERS.sub("", message)


def coded(code: str, message: str) -> str:
    """The text by which an error travels to another process."""
    return f"[{code}] {message}"


def parse(message: str) -> tuple[str | None, str]:
    """Code and message of an error's text; the code is None where somebody else wrote it."""
    found = _CODED.match(message)
    return (None, message) if found is None else (found[1], message[found.end() :])


def from_remote(part: str, message: str, refused: bool = False) -> EchoError:
    """What an error of a part that we call means to the caller's request.

    A request that the part refuses is refused with the same error. Whatever else happened there,
    to us the part is unavailable.

    Args:
        part: its name, for the message of its failure.
        refused: whether the status calls the request invalid; counts where there is no code.
    """
    code, text = parse(message)
    kind = InvalidRequestError if code is None and refused else _KINDS.get(code or "")
    if kind is not None and issubclass(kind, InvalidRequestError):
        return kind(text)
    return UnavailableError(f"{part}: {text}")
