"""What is read of Milvus' answer to a search, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from echolm.errors import UnavailableError
from echolm.primitives import Candidate
from echolm.store.columns import FOUND_FIELDS, read_candidates
from pymilvus.grpc_gen import schema_pb2


def text_column(name: str, values: Sequence[str]) -> schema_pb2.FieldData:
    strings = schema_pb2.StringArray(data=values)
    return schema_pb2.FieldData(
        field_name=name, scalars=schema_pb2.ScalarField(string_data=strings)
    )


def answer(counts: Sequence[int], tenants: Sequence[str]) -> schema_pb2.SearchResultData:
    """An answer with hits 1, 2, … in columns of another order than they were asked for."""
    ids = range(1, len(tenants) + 1)
    qualities = schema_pb2.FloatArray(data=[1 / (1 << id) for id in ids])
    columns = [
        schema_pb2.FieldData(
            field_name="quality", scalars=schema_pb2.ScalarField(float_data=qualities)
        ),
        text_column("tenant", tenants),
        *(text_column(n, [f"{n} {i}" for i in ids]) for n in ("answer_keys", "response")),
        text_column("request", [f"request {i}" for i in ids]),
    ]
    return schema_pb2.SearchResultData(
        num_queries=len(counts),
        topks=counts,
        ids=schema_pb2.IDs(int_id=schema_pb2.LongArray(data=ids)),
        scores=[0.5] * len(tenants),
        fields_data=columns,
    )


def candidate(id: int, tenant: str, answer_keys: str) -> Candidate:
    return Candidate(id, f"request {id}", f"response {id}", tenant, 1 / (1 << id), 0.5, answer_keys)


def test_rows_have_their_hits_in_order_without_those_of_other_tenants() -> None:
    results = answer([2, 0, 3], ["a", "b", "c", "a", "c"])
    assert read_candidates(results, ["a", "b", "c"], FOUND_FIELDS) == [
        [candidate(1, "a", "answer_keys 1")],
        [],
        [candidate(3, "c", "answer_keys 3"), candidate(5, "c", "answer_keys 5")],
    ]


def test_a_field_that_was_not_asked_for_is_empty() -> None:
    results = answer([1], ["a"])
    del results.fields_data[2]
    assert read_candidates(results, ["a"], FOUND_FIELDS[:-1]) == [[candidate(1, "a", "")]]


def test_without_any_hit_no_columns_are_needed() -> None:
    assert read_candidates(schema_pb2.SearchResultData(topks=[0, 0]), ["a", "b"], FOUND_FIELDS) == [
        [],
        [],
    ]


def without_a_row(results: schema_pb2.SearchResultData) -> None:
    del results.topks[-1]


def with_too_few_ids(results: schema_pb2.SearchResultData) -> None:
    del results.ids.int_id.data[-1]


def with_text_ids(results: schema_pb2.SearchResultData) -> None:
    results.ids.str_id.data.extend(["1", "2", "3"])


def with_too_few_scores(results: schema_pb2.SearchResultData) -> None:
    del results.scores[-1]


def without_a_column(results: schema_pb2.SearchResultData) -> None:
    del results.fields_data[-1]


def with_a_column_of_another_type(results: schema_pb2.SearchResultData) -> None:
    results.fields_data[0].scalars.double_data.data.extend([0.5, 0.5, 0.5])


def with_a_short_column(results: schema_pb2.SearchResultData) -> None:
    del results.fields_data[1].scalars.string_data.data[-1]


def with_a_null(results: schema_pb2.SearchResultData) -> None:
    results.fields_data[0].valid_data.extend([True, False, True])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_row, "expected hits of 2 rows, got of 1"),
        (with_too_few_ids, "expected 3 ids and scores, got 2 and 3"),
        (with_text_ids, "expected 3 ids and scores, got 0 and 3"),
        (with_too_few_scores, "expected 3 ids and scores, got 3 and 2"),
        (without_a_column, "expected the field 'request', got none"),
        (
            with_a_column_of_another_type,
            "3 values in float_data of 'quality' and 0 nulls, got 0 and 0, .* in double_data",
        ),
        (with_a_short_column, "3 values in string_data of 'tenant' and 0 nulls, got 2 and 0"),
        (with_a_null, "'quality' and 0 nulls, got 3 and 1"),
    ],
)
def test_an_answer_of_another_shape_is_refused(
    change: Callable[[schema_pb2.SearchResultData], None], message: str
) -> None:
    results = answer([1, 2], ["a", "b", "b"])
    read_candidates(results, ["a", "b"], FOUND_FIELDS)
    change(results)
    with pytest.raises(UnavailableError, match=f"^Milvus search: .*{message}"):
        read_candidates(results, ["a", "b"], FOUND_FIELDS)
