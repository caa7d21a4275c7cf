from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from echolm.errors import InvalidRequestError
from echolm.examples.transfer import (
    Header,
    batched,
    copy_into,
    read_example,
    read_header,
    write,
)
from echolm.store.base import Example, Stored
from echolm.testing.store import InMemoryStore
from numpy.typing import NDArray

HEADER = Header("model", 3)


def stored(id: int) -> Stored:
    example = Example(id, f"q{id} é\n", "a", "t", 2**62, "large", 0.9, 1, 2, uses=3, value=0.5)
    return example, np.array([id, 0.1, 1e-30], np.float32)


def exported(*ids: int) -> list[dict[str, Any]]:
    stream = io.StringIO()
    assert sum(write(stream, HEADER, batched(map(stored, ids), 2))) == len(ids)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_is_exported_comes_back_as_it_was() -> None:
    first, *others = exported(1, 2, 3)
    assert read_header(first) == HEADER
    for id, record in zip((1, 2, 3), others, strict=True):
        example, embedding = read_example(record, HEADER)
        assert example == stored(id)[0]
        np.testing.assert_array_equal(embedding, stored(id)[1])


def test_examples_are_copied_with_embeddings_made_anew() -> None:
    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(text), 0, 0] for text in texts], np.float32)

    store = InMemoryStore(3)
    for _ in copy_into(store, batched(map(stored, (1, 22)), 1), embed):
        pass
    assert [v.tolist() for _, v in store.rows.values()] == [[5, 0, 0], [6, 0, 0]]


@pytest.mark.parametrize("record", [{}, {"request": "q", "response": "a"}, {"format": "other"}])
def test_another_record_is_no_header(record: dict[str, Any]) -> None:
    assert read_header(record) is None


@pytest.mark.parametrize(
    "changes", [{"version": 2}, {"embedding": None}, {"dimension": "384"}, {"dimension": 0}]
)
def test_a_header_of_another_version_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="line 1: expected the header"):
        read_header(exported(1)[0] | changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding", "AAAA"),
        ("embedding", "no base64"),
        ("embedding", None),
        ("embedding", 7),
        ("embedding", "AAAAAAAAAAAAAAAA"),  # zeros have no direction
        ("embedding", "AADAfwAAAAAAAAAA"),  # NaN
        ("keys", "more"),
        ("id", 0),
        ("id", -3),
        ("id", 2**63),
        ("id", True),
        ("id", 1.5),
        ("id", None),
        ("request", ""),
        ("request", None),
        ("request", ["q"]),
        ("request", "half \ud800"),
        ("request", "x" * 65_536),
        ("response", " \n"),
        ("response", {}),
        ("tenant", ""),
        ("tenant", "t" * 257),
        ("scope", -1),
        ("scope", "7"),
        ("quality", 9),
        ("quality", -0.1),
        ("quality", float("nan")),
        ("quality", float("inf")),
        ("quality", None),
        ("quality", "0.9"),
        ("created_at_ms", -1),
        ("created_at_ms", 2**70),
        ("expires_at_ms", None),
        ("value", float("inf")),
        ("uses", 0.5),
        ("source_llm", "x" * 300),
        ("answer_keys", "k" * 257),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object) -> None:
    record = exported(1)[1]
    record["more" if name == "keys" else name] = value
    with pytest.raises(InvalidRequestError, match=f"^{name}: expected .*, got "):
        read_example(record, HEADER)


@pytest.mark.parametrize("name", ["id", "request", "quality"])
def test_a_missing_value_is_named(name: str) -> None:
    record = exported(1)[1]
    del record[name]
    with pytest.raises(
        InvalidRequestError, match=f"keys: expected .*got none of the name .*{name}"
    ):
        read_example(record, HEADER)
