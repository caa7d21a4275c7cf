"""Searches whose results are read as Milvus sends them: in columns.

``MilvusClient.search`` makes a dictionary of each hit, value by value, which takes three quarters
of the CPU time of a search of 8 rows (``scripts/bench_store.py``). So the request is built and the
answer read here, from the messages of Milvus' API; the connection and its retries stay pymilvus'
own. Of these, ``_get_connection``, ``_generate_call_context`` and ``_stub`` are not public, but
pymilvus is pinned, and a test compares both searches against a real Milvus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import MilvusClient
from pymilvus.client.utils import check_status
from pymilvus.decorators import retry_on_rpc_failure
from pymilvus.exceptions import MilvusException
from pymilvus.grpc_gen import common_pb2, milvus_pb2, schema_pb2

from echolm.errors import UnavailableError
from echolm.primitives import Candidate

_GUARANTEED = {"Strong": 0, "Bounded": 2}
"""The API's code for how late a search may be, by consistency level, in place of a timestamp."""

_TEXT = "string_data"
_COLUMNS = {
    "request": _TEXT,
    "response": _TEXT,
    "tenant": _TEXT,
    "quality": "float_data",
    "answer_keys": _TEXT,
}
FOUND_FIELDS = tuple(_COLUMNS)
"""Fields that a search brings, as a :class:`~echolm.primitives.Candidate` has them."""


def search_request(
    collection: str,
    embeddings: NDArray[np.float32],
    visible: str,
    limit: int,
    fields: Sequence[str],
    params: Mapping[str, Any],
    consistency_level: str,
) -> milvus_pb2.SearchRequest:
    """A search in the field ``embedding``, as ``MilvusClient.search`` would send it.

    Args:
        embeddings: FP32 [n, D].
        visible: the filter.
        limit: most hits of each row.
        fields: what the hits bring, of ``FOUND_FIELDS``.
        params: those of the index.
    """
    placeholder = common_pb2.PlaceholderValue(
        tag="$0",
        type=common_pb2.PlaceholderType.FloatVector,
        values=[row.tobytes() for row in np.asarray(embeddings, dtype="<f4")],
    )
    options = {
        "topk": str(limit),
        "round_decimal": "-1",
        "ignore_growing": "False",
        "anns_field": "embedding",
        "params": json.dumps(params, separators=(",", ":")),
    }
    return milvus_pb2.SearchRequest(
        collection_name=collection,
        dsl=visible,
        dsl_type=common_pb2.DslType.BoolExprV1,
        placeholder_group=common_pb2.PlaceholderGroup(
            placeholders=[placeholder]
        ).SerializeToString(),
        nq=len(embeddings),
        output_fields=fields,
        search_params=[common_pb2.KeyValuePair(key=k, value=v) for k, v in options.items()],
        guarantee_timestamp=_GUARANTEED[consistency_level],
        consistency_level=common_pb2.ConsistencyLevel.Value(consistency_level),
    )


def search(
    client: MilvusClient, request: milvus_pb2.SearchRequest, timeout: float
) -> schema_pb2.SearchResultData:
    """What Milvus finds; errors and retries are those of ``MilvusClient.search``."""
    context = client._generate_call_context()
    results = _search(client._get_connection(), request, timeout=timeout, context=context)
    return results.results


@retry_on_rpc_failure()  # type: ignore[untyped-decorator]
def _search(
    connection: Any, request: milvus_pb2.SearchRequest, *, timeout: float, context: Any
) -> milvus_pb2.SearchResults:
    # Another stub takes its place when pymilvus connects anew.
    answer = connection._stub.Search(request, timeout=timeout, metadata=context.to_grpc_metadata())
    if answer is None:
        raise MilvusException(message="expected an answer to the search, got none")
    check_status(answer.status)
    return answer


def read_candidates(
    results: schema_pb2.SearchResultData, tenants: Sequence[str], fields: Sequence[str]
) -> list[list[Candidate]]:
    """The hits of each row in Milvus' order, without those of another tenant than the row's.

    Nor with those whose quality or similarity is out of range: the row in Milvus is damaged.

    Args:
        fields: those that were asked for, of ``FOUND_FIELDS``.

    Raises:
        UnavailableError: the answer has another shape than that of such a search.
    """
    counts = list(results.topks)
    if len(counts) != len(tenants):
        raise _unexpected(f"hits of {len(tenants)} rows", f"of {len(counts)}")
    total = sum(counts)
    ids, scores = results.ids.int_id.data, results.scores
    if (len(ids), len(scores)) != (total, total):
        raise _unexpected(f"{total} ids and scores", f"{len(ids)} and {len(scores)}")
    if not total:
        return [[] for _ in tenants]
    columns = {column.field_name: column for column in results.fields_data}
    values = {name: _values(name, columns.get(name), total) for name in fields}
    empty = [""] * total  # of fields that an earlier collection lacks
    request, response, tenant, quality, answer_keys = (
        values.get(name, empty) for name in FOUND_FIELDS
    )
    of_candidates = ids, request, response, tenant, quality, scores, answer_keys
    rows, end = [], 0
    for own, count in zip(tenants, counts, strict=True):
        row, end = slice(end, end + count), end + count
        hits = zip(*(column[row] for column in of_candidates), strict=True)
        usable = [
            name == own and 0.0 <= good <= 1.0 and -2.0 < similar < 2.0  # False for NaN
            for name, good, similar in zip(tenant[row], quality[row], scores[row], strict=True)
        ]
        kept = compress(hits, usable)
        rows.append([Candidate(*hit) for hit in kept])
    return rows


def _values(name: str, column: schema_pb2.FieldData | None, total: int) -> Sequence[Any]:
    """A field's values of all hits."""
    if column is None:
        raise _unexpected(f"the field {name!r}", "none")
    kind = _COLUMNS[name]
    values: Sequence[Any] = getattr(column.scalars, kind).data
    nulls = list(column.valid_data).count(False)
    if len(values) != total or nulls:
        got = f"{len(values)} and {nulls}, the values in {column.scalars.WhichOneof('data')}"
        raise _unexpected(f"{total} values in {kind} of {name!r} and 0 nulls", got)
    return values


def _unexpected(expected: str, got: str) -> UnavailableError:
    return UnavailableError(
        f"Milvus search: expected {expected}, got {got}; use a version of Milvus that EchoLM is "
        "tested with"
    )
