from __future__ import annotations

import io
import json
from collections.abc import Sequence

import numpy as np
import pytest
from echolm.errors import InvalidRequestError
from echolm.examples.transfer import Header, batched, copy_into, read, read_header, write
from echolm.store.base import Example, Stored
from echolm.testing.store import InMemoryStore
from numpy.typing import NDArray

HEADER = Header("model", 3)


def stored(id: int) -> Stored:
    example = Example(id, f"q{id} é\n", "a", "t", 2**62, "large", 0.9, 1, 2, uses=3, value=0.5)
    return example, np.array([id, 0.1, 1e-30], np.float32)


def exported(*ids: int) -> io.StringIO:
    stream = io.StringIO()
    assert sum(write(stream, HEADER, batched(map(stored, ids), 2))) == len(ids)
    stream.seek(0)
    return stream


def take_in(stream: io.StringIO, **options: object) -> InMemoryStore:
    store = InMemoryStore(3)
    header = read_header(stream)
    assert header == HEADER
    for _ in copy_into(store, batched(read(stream, header), 2), options.get("embed")):  # type: ignore[arg-type]
        pass
    return store


def test_what_is_exported_comes_back_as_it_was() -> None:
    store = take_in(exported(1, 2, 3))
    assert [example for example, _ in store.rows.values()] == [stored(i)[0] for i in (1, 2, 3)]
    for id, (_, embedding) in store.rows.items():
        np.testing.assert_array_equal(embedding, stored(id)[1])


def test_requests_are_embedded_anew_where_that_is_asked() -> None:
    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[len(text), 0, 0] for text in texts], np.float32)

    store = take_in(exported(1, 22), embed=embed)
    assert [v.tolist() for _, v in store.rows.values()] == [[5, 0, 0], [6, 0, 0]]


@pytest.mark.parametrize(
    "line", ["", "{}", "[]", "no json", '{"format": "echolm-examples", "version": 2}']
)
def test_a_file_without_the_header_is_refused(line: str) -> None:
    with pytest.raises(InvalidRequestError, match="line 1: expected the header"):
        read_header(io.StringIO(line + "\n"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding", "AAAA"),
        ("embedding", None),
        ("more", 1),
        ("id", None),
    ],
)
def test_a_wrong_line_is_named_and_those_before_it_are_in(key: str, value: object) -> None:
    lines = exported(1, 2, 3).getvalue().splitlines()
    wrong = json.loads(lines[3])
    if value is None:
        del wrong[key]
    else:
        wrong[key] = value
    lines[3] = json.dumps(wrong)
    stream = io.StringIO("\n".join(lines))
    header = read_header(stream)
    store = InMemoryStore(3)
    with pytest.raises(InvalidRequestError, match="line 4: expected an example"):
        list(copy_into(store, batched(read(stream, header), 2), None))
    assert set(store.rows) == {1, 2}
