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
    """The file, to write text in UTF-8; CommandError if it cannot take all of it."""
    try:
        with _opened(file, "w") as stream:
            yield stream
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable("standard output" if file == "-" else file, error) from error


@contextmanager
def reading(file: str) -> Iterator[TextIO]:
    """The file, to read text in UTF-8; CommandError if that is impossible."""
    try:
        with _opened(file, "r") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise CommandError(f"{file}: expected text in UTF-8, got: {error}") from error


@contextmanager
def _opened(file: str, mode: Literal["r", "w"]) -> Iterator[TextIO]:
    """The file or standard stream, in UTF-8 whatever the locale says."""
    if file == "-":
        stream = sys.stdin if mode == "r" else sys.stdout
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")
        yield stream
        return
    try:
        opened = open(file, mode, encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        purpose = "read" if mode == "r" else "write"
        raise CommandError(
            f"{file}: expected a file to {purpose}, got: {error.strerror}; give another path, or -"
        ) from error
    with opened:
        yield opened
