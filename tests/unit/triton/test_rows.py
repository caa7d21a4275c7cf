"""Requests become rows, rows are answered together, and errors stay with their requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from echolm.contracts import Tensor
from echolm.errors import InvalidRequestError, UnavailableError
from echolm.store.checks import check_vector
from echolm.triton.rows import (
    answer_together,
    error_text,
    read_each,
    read_rows,
    to_array,
)
from numpy.typing import NDArray

SPECS = (
    Tensor("text", "BYTES", (1,)),
    Tensor("count", "INT32", (1,), optional=True),
    Tensor("words", "BYTES", (-1,), optional=True),
    Tensor("vector", "FP32", (-1,), optional=True),
)


def texts(*rows: bytes) -> NDArray[np.object_]:
    """BYTES [n, 1]."""
    return np.array([[row] for row in rows], dtype=np.object_)


def test_rows_have_the_values_of_the_inputs_that_came() -> None:
    arrays = {
        "text": texts(b"a", "é".encode()),
        "count": np.array([[1], [2]], np.int32),
        "words": np.array([[b"x", b""], [b"y", b"z"]], np.object_),
    }
    rows = read_rows(arrays, SPECS)
    assert rows == [
        {"text": "a", "count": 1, "words": ["x", ""]},
        {"text": "é", "count": 2, "words": ["y", "z"]},
    ]


def test_an_array_outlives_its_request() -> None:
    memory = np.ones((1, 3), np.float32)
    [row] = read_rows({"text": texts(b"a"), "vector": memory}, SPECS)
    memory[:] = 0
    assert row["vector"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"^text: expected a BYTES tensor of shape \[n, 1\], got none"),
        ({"text": texts()}, "^batch: expected one row or more"),
        (
            {"text": texts(b"a"), "count": np.ones((2, 1), np.int32)},
            "^batch: expected .*as many of each input, got .*'text': 1, 'count': 2",
        ),
        (
            {"text": texts(b"a"), "count": np.ones((1, 2), np.int32)},
            r"^count: expected one element, got shape \[2\]",
        ),
        ({"text": texts(b"\xff")}, "^text: expected UTF-8 text, got byte 0xff at offset 0"),
        (
            {"text": texts(b"a"), "words": texts(b"\xc3")},
            "^words: expected UTF-8 text, got byte 0xc3 at offset 0",
        ),
    ],
)
def test_what_does_not_keep_the_contract_is_refused_by_name(
    arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        read_rows(arrays, SPECS)


def execute(
    run: Callable[[Sequence[str]], Sequence[str]], *requests: Sequence[bytes]
) -> tuple[list[Any], list[list[str]]]:
    """For each request its results, or status and text of its error; and the batches run."""
    batches: list[list[str]] = []

    def read(request: Sequence[bytes]) -> list[str]:
        return [row["text"] for row in read_rows({"text": texts(*request)}, SPECS)]

    def run_batch(rows: Sequence[str]) -> Sequence[str]:
        batches.append(list(rows))
        return run(rows)

    answers = answer_together(requests, read, run_batch)
    return [error_text(a) if isinstance(a, Exception) else a for a in answers], batches


def upper(rows: Sequence[str]) -> list[str]:
    return [row.upper() for row in rows]


def test_all_rows_go_through_one_call_and_back_to_their_requests() -> None:
    responses, batches = execute(upper, [b"a"], [b"b", b"c"], [b"d"])
    assert responses == [["A"], ["B", "C"], ["D"]]
    assert batches == [["a", "b", "c", "d"]]


def test_a_bad_request_fails_alone() -> None:
    responses, batches = execute(upper, [b"a"], [b"b", b"\xff"], [], [b"c"])
    assert (responses[0], responses[3]) == (["A"], ["C"])
    status, message = responses[1]
    assert status == "INVALID_ARG"
    assert message.startswith("[invalid_request] text: expected UTF-8 text")
    assert responses[2][1].startswith("[invalid_request] batch: expected one row or more")
    assert batches == [["a", "c"]]


def test_without_a_good_request_nothing_is_run() -> None:
    responses, batches = execute(upper, [b"\xff"], [b"\xfe"])
    assert [status for status, _ in responses] == ["INVALID_ARG", "INVALID_ARG"]
    assert batches == []


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (UnavailableError("away"), ("UNAVAILABLE", "[unavailable] away")),
        (
            ZeroDivisionError("secret"),
            ("INTERNAL", "[internal] internal error: ZeroDivisionError; see the server's log"),
        ),
    ],
)
def test_a_failure_of_the_shared_call_is_every_requests_error(
    problem: Exception, shown: tuple[str, str]
) -> None:
    def fail(rows: Sequence[str]) -> list[str]:
        raise problem

    responses, _ = execute(fail, [b"a"], [b"\xff"], [b"b"])
    assert (responses[0], responses[2]) == (shown, shown)
    assert responses[1][0] == "INVALID_ARG"


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (np.ones((1, 3), np.float32), r"^embedding: expected shape \[2\].*got shape \[3\]"),
        (np.array([[1, np.nan]], np.float32), "^embedding: expected finite numbers"),
    ],
)
def test_an_embedding_that_the_store_would_refuse_is_refused(embedding: Any, message: str) -> None:
    [row] = read_rows({"embedding": embedding}, (Tensor("embedding", "FP32", (-1,)),))
    with pytest.raises(InvalidRequestError, match=message):
        check_vector(row["embedding"], 2)


def test_what_is_wrong_with_one_callers_row_stands_in_its_place() -> None:
    arrays = {"text": texts(b"a", b"\xff", b"c"), "count": np.array([[1], [2], [3]], np.int32)}
    first, bad, last = read_each(arrays, SPECS)
    assert (first, last) == ({"text": "a", "count": 1}, {"text": "c", "count": 3})
    assert isinstance(bad, InvalidRequestError)
    assert str(bad).startswith("text: expected UTF-8 text, got byte 0xff")


def test_values_become_an_array_of_the_contracts_type_and_this_shape() -> None:
    words, vector = SPECS[2:]
    first = to_array(words, ["a", "b", "", ""], (2, -1))
    second = to_array(vector, [], (2, 0))
    assert first.tolist() == [[b"a", b"b"], [b"", b""]]
    assert (second.shape, second.dtype) == ((2, 0), np.float32)
