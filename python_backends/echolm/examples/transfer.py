"""Examples as a file of JSON lines, to keep, to move, or to embed anew.

The first line names the embedding model, each other line is one example::

    {"format": "echolm-examples", "version": 1, "embedding": "all-MiniLM-L6-v2", "dimension": 384}
    {"id": 1, "request": "…", "response": "…", …, "embedding": "<base64 of FP32, little endian>"}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from itertools import islice
from typing import Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError
from echolm.store.base import MAX_TEXT_BYTES, NEVER, Example, ExampleStore, Stored

_FORMAT, _VERSION = "echolm-examples", 1

Row = TypeVar("Row")
EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to FP32 [n, D], unit length."""


@dataclass(frozen=True)
class Header:
    """The embedding model of a file, and its dimension."""

    embedding: str
    dimension: int


def write(stream: TextIO, header: Header, batches: Iterable[Sequence[Stored]]) -> Iterator[int]:
    """Write examples; yields after each batch how many it had."""
    first = {"format": _FORMAT, "version": _VERSION, **asdict(header)}
    stream.write(json.dumps(first) + "\n")
    for batch in batches:
        for example, embedding in batch:
            raw = np.asarray(embedding, dtype="<f4").tobytes()
            line = {**asdict(example), "embedding": base64.b64encode(raw).decode("ascii")}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        yield len(batch)


def read_header(record: Mapping[str, Any]) -> Header | None:
    """The header that a file's first record is; None if it is another record.

    Raises:
        InvalidRequestError: it is the header of a later version, or a broken one.
    """
    if record.get("format") != _FORMAT:
        return None
    embedding, dimension = record.get("embedding"), record.get("dimension")
    known = record.get("version") == _VERSION and isinstance(embedding, str)
    if not known or not isinstance(dimension, int) or dimension < 1:
        raise InvalidRequestError(
            f"line 1: expected the header of {_FORMAT}, version {_VERSION}, got {dict(record)}; "
            "give a file that `echolm examples export` of this version wrote"
        )
    return Header(str(embedding), dimension)


def read_example(record: Mapping[str, Any], header: Header) -> Stored:
    """The example of another record of such a file.

    Raises:
        InvalidRequestError: a value is missing, of another type or out of range.
    """
    values = dict(record)
    raw = values.pop("embedding", None)
    if unknown := sorted(values.keys() - _FIELDS):
        raise InvalidRequestError.of("keys", f"some of {sorted(_FIELDS)}", f"{unknown} as well")
    if missing := sorted(_REQUIRED - values.keys()):
        raise InvalidRequestError.of("keys", f"{sorted(_REQUIRED)}", f"none of the name {missing}")
    for name, value in values.items():
        _CHECKS[name](name, value)
    return Example(**values), _embedding(raw, header.dimension)


def _embedding(raw: Any, dimension: int) -> NDArray[np.float32]:
    expected = f"{dimension} finite numbers, not all of them 0, as FP32 in Base64"
    try:
        embedding = np.frombuffer(base64.b64decode(raw, validate=True), dtype="<f4")
    except (ValueError, TypeError):
        raise InvalidRequestError.of("embedding", expected, raw) from None
    if embedding.shape != (dimension,) or not np.isfinite(embedding).all() or not embedding.any():
        raise InvalidRequestError.of("embedding", expected, f"{embedding.size} others")
    return embedding


def check_text(name: str, value: Any, most_bytes: int = MAX_TEXT_BYTES, least: int = 1) -> str:
    """A text of a file.

    Args:
        least: characters other than blank space.

    Raises:
        InvalidRequestError: it is no text, too short or too long, or no UTF-8.
    """
    if not isinstance(value, str):
        raise InvalidRequestError.of(name, "text", type(value).__name__)
    if len(value.strip()) < least:
        raise InvalidRequestError.of(name, "text that is not empty", value)
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        got = f"half of a character at {error.start}"
        raise InvalidRequestError.of(name, "text that UTF-8 can hold", got) from None
    if size > most_bytes:
        raise InvalidRequestError.of(name, f"at most {most_bytes} bytes", size)
    return value


def check_number(name: str, value: Any, least: float, most: float, kind: type = float) -> Any:
    """A number of a file, an integer where ``kind`` is ``int``.

    Raises:
        InvalidRequestError: it is none, or not in the range.
    """
    good = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not good or not least <= value <= most:  # neither is so of NaN
        what = "an integer" if kind is int else "a number"
        raise InvalidRequestError.of(name, f"{what} from {least} to {most}", value)
    return value


_MAX_NAME_BYTES = 256  # as requests may have them
_FIELDS = {field.name for field in fields(Example)}
_REQUIRED = {field.name for field in fields(Example) if field.default is MISSING}
_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "id": partial(check_number, least=1, most=2**63 - 1, kind=int),
    "request": check_text,
    "response": check_text,
    "tenant": partial(check_text, most_bytes=_MAX_NAME_BYTES),
    "scope": partial(check_number, least=0, most=2**63 - 1, kind=int),
    "source_llm": partial(check_text, most_bytes=_MAX_NAME_BYTES, least=0),
    "quality": partial(check_number, least=0, most=1),
    **{
        name: partial(check_number, least=0, most=NEVER, kind=int)
        for name in ("created_at_ms", "updated_at_ms", "expires_at_ms", "uses", "replays")
    },
    "value": partial(check_number, least=0, most=1e9),
    "answer_keys": partial(check_text, most_bytes=_MAX_NAME_BYTES, least=0),
}


def batched(rows: Iterable[Row], size: int = 250) -> Iterator[list[Row]]:
    """The rows, some at a time."""
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch


def copy_into(
    store: ExampleStore, batches: Iterable[Sequence[Stored]], embed: EmbedTexts
) -> Iterator[list[Example]]:
    """Copy the examples of another store, embedded anew, over those with the same ids.

    Yields each batch's examples.

    Raises:
        UnavailableError: the store cannot be written; all batches before are in it.
    """
    for batch in batches:
        examples = [example for example, _ in batch]
        store.upsert(examples, embed([example.request for example in examples]))
        yield examples
