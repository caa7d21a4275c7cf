"""The file of ``echolm examples export``; ``-`` is standard output."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from echolm_client.cli.console import CommandError, unwritable


@contextmanager
def writing(file: str) -> Iterator[TextIO]:
    """The file, to write text in UTF-8; CommandError if it cannot take all of it."""
    try:
        with _opened(file) as stream:
            yield stream
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable("standard output" if file == "-" else file, error) from error


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """The file or standard output, in UTF-8 whatever the locale says."""
    if file == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    try:
        opened = open(file, "w", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CommandError(
            f"{file}: expected a file to write, got: {error.strerror}; give another path, or -"
        ) from error
    with opened:
        yield opened
