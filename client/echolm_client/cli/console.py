"""Standard input and output of commands, and what becomes of their errors.

Whatever happens to a command ends in a message and an exit code, never in a traceback: also a
reader who has left (``| head``), a full disk, and standard streams that are closed.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TextIO

from echolm_client._errors import EchoLMError, InvalidRequest
from echolm_client.cli.exit_codes import FAILED, INTERRUPTED, OK, USAGE


class CommandError(Exception):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


CLIENT_ERRORS: Mapping[type[Exception], int] = {InvalidRequest: USAGE, EchoLMError: FAILED}
"""Exit code for each error of the client; a subclass has that of its nearest base."""


def guarded(
    command: Callable[[], int], errors: Mapping[type[Exception], int] = CLIENT_ERRORS
) -> int:
    """Run a command; whatever goes wrong becomes a message and an exit code.

    Args:
        errors: exit codes of the errors that the command raises on purpose.
    """
    _prepare_streams()
    try:
        try:
            return command()
        finally:
            # Here, since what Python finds only when it flushes at exit becomes a traceback.
            write("")
    except CommandError as error:
        return complain(str(error), error.code)
    except tuple(errors) as error:
        return complain(str(error), next(errors[c] for c in type(error).__mro__ if c in errors))
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader has left, as `head` does. It has what it wanted, so nothing is said.
        _silence(sys.stdout)
        return FAILED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}", FAILED)


def write(text: str) -> None:
    """Write to standard output at once; a character that it cannot show becomes a question mark.

    Raises:
        BrokenPipeError: nobody reads it any more.
        CommandError: it cannot be written, for instance because the disk is full.
    """
    try:
        _write(text, sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(sys.stdout)
        raise unwritable("standard output", error) from error


def unwritable(name: str, error: OSError) -> CommandError:
    """The error for a file that has taken only a part of the output, or none."""
    return CommandError(
        f"{name}: expected to write all of the output to it, got: {error.strerror or error}; what "
        "is in it is not complete: make room, or write it elsewhere",
        FAILED,
    )


def note(text: str) -> None:
    """Write a line to standard error, for a person; one that cannot be written is dropped."""
    try:
        _write(f"{text}\n", sys.stderr)
    except OSError:
        _silence(sys.stderr)


def complain(message: str, code: int = OK) -> int:
    """Write an error message to standard error; gives the exit code back."""
    note(f"echolm: {message}")
    return code


def read_stdin() -> str:
    """All of standard input.

    Raises:
        CommandError: it is not text in the locale's encoding.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        encoding = error.encoding.upper()
        raise CommandError(f"standard input: expected text in {encoding}, got: {error}") from error


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _write(text: str, file: TextIO) -> None:
    try:
        file.write(text)
    except UnicodeEncodeError:
        encoding = file.encoding or "ascii"
        file.write(text.encode(encoding, "replace").decode(encoding))
    file.flush()


def _silence(file: TextIO) -> None:
    """Let Python's own flush at exit succeed."""
    try:
        descriptor = file.fileno()
    except (OSError, ValueError):  # in a test it is no file
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _prepare_streams() -> None:
    # Python has None for a standard stream that was closed before it started (``>&-``).
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Takes the lowest free descriptor, so that no other file can become a standard stream.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    stream = sys.stdout
    is_real = isinstance(stream, io.TextIOWrapper) and stream is sys.__stdout__
    if is_real and isinstance(stream.buffer, io.RawIOBase):
        # With PYTHONUNBUFFERED Python takes no notice of a write that has written a part only.
        sys.stdout = open(  # noqa: SIM115
            stream.fileno(), "w", encoding=stream.encoding, errors=stream.errors, closefd=False
        )
