"""The example store in Milvus: Milvus Lite on one machine, a Milvus server on many."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient, MilvusException

from echolm.embedding.spec import EmbedderSpec
from echolm.errors import ConfigurationError, UnavailableError
from echolm.retrieval.store import Candidate, Example, Query
from echolm.settings import RetrievalSettings

logger = logging.getLogger("echolm")

SCHEMA_VERSION = 1
_RECONNECT_S = 5.0
MAX_VARCHAR = 65_535  # Milvus' limit, in bytes

_SCALARS: tuple[tuple[str, DataType, dict[str, int]], ...] = (
    ("request", DataType.VARCHAR, {"max_length": MAX_VARCHAR}),
    ("response", DataType.VARCHAR, {"max_length": MAX_VARCHAR}),
    ("tenant", DataType.VARCHAR, {"max_length": 512}),
    ("scope", DataType.INT64, {}),
    ("source_llm", DataType.VARCHAR, {"max_length": 256}),
    ("quality", DataType.FLOAT, {}),
    ("created_at_ms", DataType.INT64, {}),
    ("updated_at_ms", DataType.INT64, {}),
    ("expires_at_ms", DataType.INT64, {}),
    ("uses", DataType.INT64, {}),
    ("value", DataType.FLOAT, {}),
    ("replays", DataType.INT64, {}),
    ("num_bytes", DataType.INT64, {}),
)
_FOUND_FIELDS = ["request", "response", "tenant", "quality"]
_EXPIRY_STEP_MS = 60_000  # the filter text changes once a minute, so Milvus can reuse its plan


class MilvusStore:
    """An :class:`~echolm.retrieval.store.ExampleStore` in one Milvus collection.

    The collection's description holds the embedding model's name, its dimension and the
    schema's version; a collection made for another model is refused.

    Args:
        settings: address, collection, index and time limits.
        embedding_name: name of the embedding model that made the vectors.
        dimension: its dimension D.

    Raises:
        ConfigurationError: the collection belongs to another embedding model or schema.
        UnavailableError: Milvus does not answer.
    """

    def __init__(self, settings: RetrievalSettings, embedding_name: str, dimension: int) -> None:
        if not settings.milvus_uri:
            raise ConfigurationError(
                "retrieval.milvus_uri: expected an address, got none; `echolm serve` sets it to "
                "its Milvus Lite, elsewhere give that of your Milvus server"
            )
        self._settings = settings
        self._collection = settings.collection
        self._timeout = settings.search_timeout_s
        self._identity = {
            "embedding": embedding_name,
            "dimension": dimension,
            "schema": SCHEMA_VERSION,
        }
        try:
            self._client = MilvusClient(
                uri=settings.milvus_uri, token=settings.milvus_token.get_secret_value(), timeout=10
            )
            self._open()
        except MilvusException as error:
            raise UnavailableError(f"Milvus at {settings.milvus_uri}: {error.message}") from error

    def _open(self) -> None:
        if not self._client.has_collection(self._collection):
            try:
                self._create()
            except MilvusException:
                # Another process of ours may have created it in the meantime.
                if not self._client.has_collection(self._collection):
                    raise
        found = self._client.describe_collection(self._collection).get("description", "")
        try:
            identity = json.loads(found)
        except json.JSONDecodeError:
            identity = None
        if identity != self._identity:
            raise ConfigurationError(
                f"Milvus collection {self._collection!r}: expected one made for {self._identity}, "
                f"got {identity or found!r}; set retrieval.collection to another name, or "
                "configure the embedding model that made it"
            )
        self._client.load_collection(self._collection)

    def _create(self) -> None:
        schema = self._client.create_schema(
            auto_id=False,
            enable_dynamic_field=False,
            description=json.dumps(self._identity, sort_keys=True),
        )
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self._identity["dimension"])
        for name, datatype, options in _SCALARS:
            schema.add_field(name, datatype, **options)
        index = self._client.prepare_index_params()
        index.add_index(
            "embedding",
            index_type=self._settings.index_type,
            metric_type="COSINE",
            params=dict(self._settings.index_params),
        )
        self._client.create_collection(
            self._collection,
            schema=schema,
            index_params=index,
            consistency_level="Bounded",
        )

    def search(
        self, embeddings: NDArray[np.float32], queries: Sequence[Query], top_n: int, now_ms: int
    ) -> list[list[Candidate]]:
        # Rows of one scope share a search; usually that is the whole batch.
        rows_of_scope: dict[int, list[int]] = defaultdict(list)
        for row, query in enumerate(queries):
            rows_of_scope[query.scope].append(row)
        not_before = now_ms // _EXPIRY_STEP_MS * _EXPIRY_STEP_MS
        found: list[list[Candidate]] = [[] for _ in queries]
        for scope, rows in rows_of_scope.items():
            try:
                hits = self._client.search(
                    self._collection,
                    data=[embeddings[row] for row in rows],
                    anns_field="embedding",
                    filter=f"scope == {scope} and expires_at_ms > {not_before}",
                    limit=top_n,
                    output_fields=_FOUND_FIELDS,
                    search_params={"params": dict(self._settings.search_params)},
                    timeout=self._timeout,
                )
            except MilvusException as error:
                raise UnavailableError(f"Milvus search failed: {error.message}") from error
            for row, row_hits in zip(rows, hits, strict=True):
                # The scope is a hash; the tenant's name is what must match.
                found[row] = [
                    c for c in map(_candidate, row_hits) if c.tenant == queries[row].tenant
                ]
        return found

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        if not examples:
            return
        rows = [
            _row(example, embedding)
            for example, embedding in zip(examples, embeddings, strict=True)
        ]
        try:
            self._client.upsert(self._collection, rows)
        except MilvusException as error:
            raise UnavailableError(f"Milvus upsert failed: {error.message}") from error

    def delete(self, ids: Iterable[int]) -> None:
        wanted = list(ids)
        if not wanted:
            return
        try:
            self._client.delete(self._collection, ids=wanted)
        except MilvusException as error:
            raise UnavailableError(f"Milvus delete failed: {error.message}") from error

    def count(self) -> int:
        try:
            rows = self._client.query(self._collection, filter="", output_fields=["count(*)"])
        except MilvusException as error:
            raise UnavailableError(f"Milvus count failed: {error.message}") from error
        return int(rows[0]["count(*)"])

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class LazyMilvusStore:
    """A :class:`MilvusStore` that is opened when Milvus answers, not necessarily at start.

    Milvus being away at start must not keep the server down: until it answers, every call
    raises UnavailableError, and a new connection is tried once in a while.

    Raises:
        ConfigurationError: Milvus answers, and the collection is another model's.
    """

    def __init__(self, settings: RetrievalSettings, embedding: EmbedderSpec) -> None:
        self._settings = settings
        self._embedding = embedding
        self._lock = threading.Lock()
        self._store: MilvusStore | None = None
        self._next_try = 0.0
        try:
            self._opened()
        except UnavailableError as error:
            logger.warning("starting without the example store: %s", error)

    def _opened(self) -> MilvusStore:
        with self._lock:
            if self._store is None:
                if time.monotonic() < self._next_try:
                    raise UnavailableError("Milvus is not connected")
                self._next_try = time.monotonic() + _RECONNECT_S
                self._store = MilvusStore(
                    self._settings, self._embedding.name, self._embedding.dimension
                )
            return self._store

    def search(
        self, embeddings: NDArray[np.float32], queries: Sequence[Query], top_n: int, now_ms: int
    ) -> list[list[Candidate]]:
        return self._opened().search(embeddings, queries, top_n, now_ms)

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        self._opened().upsert(examples, embeddings)

    def delete(self, ids: Iterable[int]) -> None:
        self._opened().delete(ids)

    def count(self) -> int:
        return self._opened().count()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._store is not None:
            self._store.close()


def _candidate(hit: Any) -> Candidate:
    entity = hit["entity"]
    return Candidate(
        id=int(hit["id"]),
        request=entity["request"],
        response=entity["response"],
        tenant=entity["tenant"],
        quality=float(entity["quality"]),
        similarity=float(hit["distance"]),
    )


def _row(example: Example, embedding: NDArray[np.float32]) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(example, name) for name, _, _ in _SCALARS}
    row["id"] = example.id
    row["embedding"] = np.asarray(embedding, dtype=np.float32)
    return row
