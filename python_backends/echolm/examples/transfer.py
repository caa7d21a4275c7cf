"""Examples as a file of JSON lines, to keep, to move, or to embed anew.

The first line names the embedding model, each other line is one example::

    {"format": "echolm-examples", "version": 1, "embedding": "all-MiniLM-L6-v2", "dimension": 384}
    {"id": 1, "request": "…", "response": "…", …, "embedding": "<base64 of FP32, little endian>"}
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError
from echolm.store.base import Example, ExampleStore, Stored

_FORMAT, _VERSION = "echolm-examples", 1
_FIELDS = {field.name for field in fields(Example)}

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


def read_header(stream: TextIO) -> Header:
    """The first line of a file.

    Raises:
        InvalidRequestError: the file is no such file, or has a later version.
    """
    try:
        header: Any = json.loads(stream.readline())
        if header["format"] != _FORMAT or header["version"] != _VERSION:
            raise ValueError(f"{header['format']} {header['version']}")
        return Header(str(header["embedding"]), int(header["dimension"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidRequestError(
            f"line 1: expected the header of {_FORMAT}, version {_VERSION}, got {error}; give a "
            "file that `echolm examples export` wrote"
        ) from error


def read(stream: TextIO, header: Header) -> Iterator[Stored]:
    """The examples behind the header.

    Raises:
        InvalidRequestError: a line is wrong; the message names it.
    """
    for number, line in enumerate(stream, start=2):
        try:
            values = json.loads(line)
            embedding = np.frombuffer(base64.b64decode(values.pop("embedding")), dtype="<f4")
            if unknown := sorted(values.keys() - _FIELDS):
                raise ValueError(f"unknown keys {unknown}")
            if embedding.shape != (header.dimension,) or not np.isfinite(embedding).all():
                raise ValueError(f"an embedding of {embedding.size} numbers")
            example = Example(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRequestError(
                f"line {number}: expected an example with an embedding of {header.dimension} "
                f"finite numbers, got {error}; nothing from this line on was read"
            ) from error
        yield example, embedding


def batched(rows: Iterable[Row], size: int = 250) -> Iterator[list[Row]]:
    """The rows, some at a time."""
    remaining = iter(rows)
    while batch := list(islice(remaining, size)):
        yield batch


def copy_into(
    store: ExampleStore, batches: Iterable[Sequence[Stored]], embed: EmbedTexts | None
) -> Iterator[list[Example]]:
    """Write examples into a store, over those with the same ids; yields each batch's examples.

    Args:
        embed: computes the embeddings anew; None keeps them.

    Raises:
        UnavailableError: the store cannot be written; all batches before are in it.
    """
    for batch in batches:
        examples = [example for example, _ in batch]
        if embed is None:
            embeddings = np.stack([embedding for _, embedding in batch])
        else:
            embeddings = embed([example.request for example in examples])
        store.upsert(examples, embeddings)
        yield examples
