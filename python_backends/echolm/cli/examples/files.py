"""The files of ``echolm examples export`` and ``import``; ``-`` is standard output or input."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

from echolm_client.cli.console import CommandError, unwritable


@contextmanager
def writing(file: str) -> Iterator[TextIO]:
    """The file, to write text in UTF-8.

    Raises:
        CommandError: it cannot be opened, or not take all of the text.
    """
    try:
        if file == "-":
            yield _standard(sys.stdout)
            sys.stdout.flush()
        else:
            with _opened(file, "w", "write") as stream:
                yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable("standard output" if file == "-" else file, error) from error


@contextmanager
def reading(file: str) -> Iterator[TextIO]:
    """The file, to read text in UTF-8.

    Raises:
        CommandError: it cannot be opened or read, or is not UTF-8.
    """
    stream = _standard(sys.stdin) if file == "-" else _opened(file, "r", "read")
    try:
        yield stream
    except UnicodeDecodeError as error:
        raise CommandError(f"{file}: expected text in UTF-8, got: {error}") from error
    finally:
        if file != "-":
            stream.close()


def _opened(file: str, mode: Literal["r", "w"], purpose: str) -> TextIO:
    try:
        return open(file, mode, encoding="utf-8")
    except OSError as error:
        raise CommandError(
            f"{file}: expected a file to {purpose}, got: {error.strerror}; give another path, or -"
        ) from error


def _standard(stream: TextIO) -> TextIO:
    """A standard stream, in UTF-8 whatever the locale says."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8")
    return stream
