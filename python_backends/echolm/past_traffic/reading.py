"""Records of a file, one after the other, whatever is wrong with some of them.

A file holds JSON lines, one JSON array, or CSV, all in UTF-8, packed by gzip or not. A page of a
list, ``{"data": […]}``, stands for the records in it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echolm.errors import InvalidRequestError
from echolm.past_traffic.record import NOT_JSON, NOT_UTF8, TOO_LONG, UNKNOWN

_LONGEST = 32 * 2**20  # bytes of a record
_PIECE = 2**20
_SPACE = b" \t\r\n,"
_MARKS = re.compile(rb'["\\\\{}\[\]\n]')


@dataclass(frozen=True)
class Row:
    """One record of a log.

    Attributes:
        line: where it begins, counted from 1; in a JSON array the number of the record.
        record: None if it cannot be read, for the reason in ``problem``.
    """

    file: str
    line: int
    record: Mapping[str, Any] | None
    problem: str = ""


def rows(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Iterator[Row]:
    """The records of a file.

    Args:
        on_bytes: is told now and then how many more bytes of the file were read.

    Raises:
        InvalidRequestError: there is no such file, or it cannot be read.
    """
    try:
        with open(path, "rb") as raw:
            seen = 0
            with gzip.open(raw) if path.suffix == ".gz" else raw as stream:
                for row in rows_of(path, stream):
                    yield row
                    if (at := raw.tell()) > seen:
                        on_bytes(at - seen)
                        seen = at
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidRequestError(
            f"{path}: expected a file to read, got: {getattr(error, 'strerror', '') or error}"
        ) from error


def rows_of(path: Path, stream: Any) -> Iterator[Row]:
    """The records of an open file, of which the path is no more than the name."""
    buffered: Any = io.BufferedReader(stream, _PIECE)
    begin = buffered.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if path.name.lower().removesuffix(".gz").endswith(".csv"):
        yield from _csv_rows(path.name, buffered)
    elif begin.startswith(b"["):
        yield from _array_rows(path.name, buffered)
    else:
        for row in _json_lines(path.name, buffered):
            data = row.record.get("data") if row.record else None
            if isinstance(data, list) and not (row.record or {}).keys() & {"messages", "request"}:
                for item in data:
                    yield _row(row.file, row.line, item)
            else:
                yield row


def _row(file: str, line: int, value: Any) -> Row:
    if not isinstance(value, Mapping):
        return Row(file, line, None, UNKNOWN)
    return Row(file, line, value)


def _json_lines(file: str, stream: io.BufferedReader) -> Iterator[Row]:
    number = 0
    while line := stream.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            while not line.endswith(b"\n") and (line := stream.readline(_LONGEST)):
                pass
            yield Row(file, number, None, TOO_LONG)
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield _parsed(file, number, line)


def _parsed(file: str, line: int, data: bytes) -> Row:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return Row(file, line, None, NOT_UTF8)
    try:
        return _row(file, line, json.loads(text))
    except (ValueError, RecursionError):
        return Row(file, line, None, NOT_JSON)


def _array_rows(file: str, stream: io.BufferedReader) -> Iterator[Row]:
    """The elements of a JSON array, which are found by their brackets."""
    number = depth = -1
    at, escaped, in_string = 0, -1, False
    element = bytearray()
    skipping = False
    while piece := stream.read(_PIECE):
        start = 0
        for match in _MARKS.finditer(piece):
            mark, here = match[0], match.start()
            if in_string:
                if at + here == escaped:
                    continue
                if mark == b"\\":
                    escaped = at + here + 1
                elif mark in b'"\n':  # no JSON string has a line's end in it
                    in_string = False
            elif mark == b'"':
                in_string = True
            elif mark in b"{[":
                depth += 1
                if depth == 0:  # the array's own bracket
                    number, start = 0, here + 1
            elif mark in b"}]" and depth > 0:
                depth -= 1
                if depth == 0:
                    element += piece[start : here + 1]
                    start, number = here + 1, number + 1
                    whole = bytes(element).strip(_SPACE)
                    yield (
                        Row(file, number, None, TOO_LONG)
                        if skipping
                        else _parsed(file, number, whole)
                    )
                    element.clear()
                    skipping = False
        element += piece[start:]
        at += len(piece)
        if len(element) > _LONGEST:
            element.clear()
            skipping = True
    rest = bytes(element).strip(_SPACE)
    if skipping or rest not in (b"", b"]"):
        yield Row(file, number + 1, None, TOO_LONG if skipping else NOT_JSON)


def _csv_rows(file: str, stream: io.BufferedReader) -> Iterator[Row]:
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(text)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield Row(file, line, None, "broken row")
            continue
        if not cells:
            continue
        if header is None:
            header = cells
        elif not all(map(is_utf8, cells)):
            yield Row(file, line, None, NOT_UTF8)
        elif len(cells) != len(header):
            yield Row(file, line, None, "broken row")
        else:
            yield Row(file, line, dict(zip(header, cells, strict=True)))


def is_utf8(text: str) -> bool:
    """Whether a text can be written in UTF-8: JSON and CSV may bring halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
