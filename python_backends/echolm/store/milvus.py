"""The example store in Milvus: Milvus Lite on one machine, a Milvus server on many."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient, MilvusException
from pymilvus.exceptions import DataNotMatchException, ParamError

from echolm.embedding.spec import EmbedderSpec
from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError
from echolm.primitives import Candidate
from echolm.settings import RetrievalSettings
from echolm.store.base import MAX_TEXT_BYTES, Example, Query, Stored

logger = logging.getLogger("echolm")

SCHEMA_VERSION = 1
_RECOVER_EVERY_S = 1.0
_CONNECT_TIMEOUT_S = 10.0
_WRITE_TIMEOUT_S = 30.0
# Of a Milvus server: requests do with an example a few seconds late, all else reads its own writes.
_BOUNDED, _FRESH = "Bounded", "Strong"
_BAD_DATA = (1100, 1101, 1102)  # Milvus' codes: parameter invalid, missing, too large

_T = TypeVar("_T")

_SCALARS: tuple[tuple[str, DataType, dict[str, int]], ...] = (
    ("request", DataType.VARCHAR, {"max_length": MAX_TEXT_BYTES}),
    ("response", DataType.VARCHAR, {"max_length": MAX_TEXT_BYTES}),
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
_PLAIN_FIELDS = ["id", *(name for name, _, _ in _SCALARS)]
_ALL_FIELDS = ["embedding", *_PLAIN_FIELDS]
_EXPIRY_STEP_MS = 60_000  # the filter text changes once a minute, so Milvus can reuse its plan


class MilvusStore:
    """An :class:`~echolm.store.base.ExampleStore` in one Milvus collection.

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
        # It logs several tracebacks for each failed call, which we raise and report ourselves.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        with _reported(f"at {settings.milvus_uri}"):
            self._client = MilvusClient(
                uri=settings.milvus_uri,
                token=settings.milvus_token.get_secret_value(),
                timeout=_CONNECT_TIMEOUT_S,
            )
        self.embedding_name, self.dimension = embedding_name, dimension
        self.open()

    @classmethod
    def existing(cls, settings: RetrievalSettings) -> MilvusStore:
        """A collection whatever embedding model made it.

        Raises:
            ConfigurationError: there is no such collection, or it is not one of ours.
            UnavailableError: Milvus does not answer.
        """
        with _reported(f"at {settings.milvus_uri}"):
            client = MilvusClient(
                uri=settings.milvus_uri,
                token=settings.milvus_token.get_secret_value(),
                timeout=_CONNECT_TIMEOUT_S,
            )
            try:
                found = client.list_collections(timeout=_CONNECT_TIMEOUT_S)
                if settings.collection not in found:
                    raise ConfigurationError(
                        f"Milvus collection: expected one of {sorted(found)}, got "
                        f"{settings.collection!r}"
                    )
                description = client.describe_collection(
                    settings.collection, timeout=_CONNECT_TIMEOUT_S
                ).get("description", "")
            finally:
                client.close()
        try:
            identity = json.loads(description)
            name, dimension = str(identity["embedding"]), int(identity["dimension"])
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"Milvus collection {settings.collection!r}: expected one that EchoLM made, got "
                f"the description {description!r}"
            ) from None
        return cls(settings, name, dimension)

    def open(self) -> None:
        """Make sure that the collection exists, is ours and can be searched.

        Called at the start, and again when Milvus has come back after an outage.

        Raises:
            ConfigurationError, UnavailableError: as the class.
        """
        with _reported("collection"):
            self._open()

    def _open(self) -> None:
        exists = self._client.has_collection(self._collection, timeout=_CONNECT_TIMEOUT_S)
        if not exists:
            try:
                self._create()
            except MilvusException:
                # Another process of ours may have created it in the meantime.
                if not self._client.has_collection(self._collection, timeout=_CONNECT_TIMEOUT_S):
                    raise
        found = self._client.describe_collection(self._collection, timeout=_CONNECT_TIMEOUT_S).get(
            "description", ""
        )
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
        self._client.load_collection(
            self._collection,
            timeout=_WRITE_TIMEOUT_S,
            replica_number=self._settings.milvus_replicas,
        )

    def _create(self) -> None:
        schema = self._client.create_schema(
            auto_id=False,
            enable_dynamic_field=False,
            description=json.dumps(self._identity, sort_keys=True),
        )
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self._identity["dimension"])
        partitioned = self._settings.partition_by_tenant
        for name, datatype, options in _SCALARS:
            key = {"is_partition_key": True} if partitioned and name == "tenant" else {}
            schema.add_field(name, datatype, **options, **key)
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
            consistency_level=_BOUNDED,
            timeout=_CONNECT_TIMEOUT_S,
        )

    def search(
        self,
        embeddings: NDArray[np.float32],
        queries: Sequence[Query],
        top_n: int,
        now_ms: int,
        fresh: bool = False,
    ) -> list[list[Candidate]]:
        # Rows of one scope share a search; usually that is the whole batch.
        rows_of_scope: dict[int, list[int]] = defaultdict(list)
        for row, query in enumerate(queries):
            rows_of_scope[query.scope].append(row)
        not_before = now_ms // _EXPIRY_STEP_MS * _EXPIRY_STEP_MS
        found: list[list[Candidate]] = [[] for _ in queries]
        for scope, rows in rows_of_scope.items():
            visible = f"scope == {scope} and expires_at_ms > {not_before}"
            if self._settings.partition_by_tenant:
                # The scope says it already; by the tenant Milvus finds the partition.
                visible += f" and {_of_tenant(queries[rows[0]].tenant)}"
            with _reported("search"):
                hits = self._client.search(
                    self._collection,
                    data=[embeddings[row] for row in rows],
                    anns_field="embedding",
                    filter=visible,
                    limit=top_n,
                    output_fields=_FOUND_FIELDS,
                    search_params={"params": dict(self._settings.search_params)},
                    timeout=_WRITE_TIMEOUT_S if fresh else self._timeout,
                    consistency_level=_FRESH if fresh else _BOUNDED,
                )
            for row, row_hits in zip(rows, hits, strict=True):
                # The scope is a hash; the tenant's name is what must match.
                found[row] = [
                    c for c in map(_candidate, row_hits) if c.tenant == queries[row].tenant
                ]
        return found

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        if not examples:
            return
        rows = {
            example.id: _row(example, embedding)
            for example, embedding in zip(examples, embeddings, strict=True)
        }
        # Not Milvus' own upsert: that of Milvus Lite reads the whole collection (80 ms at 100,000
        # rows, in which nothing else is served), and that of Milvus 2.3 no partition key.
        self.delete(self.present(list(rows)))
        with _reported("insert"):
            self._client.insert(self._collection, list(rows.values()), timeout=_WRITE_TIMEOUT_S)

    def delete(self, ids: Iterable[int]) -> None:
        wanted = list(ids)
        if not wanted:
            return
        with _reported("delete"):
            self._client.delete(self._collection, ids=wanted, timeout=_WRITE_TIMEOUT_S)

    def count(self) -> int:
        with _reported("count"):
            rows = self._client.query(
                self._collection,
                filter="",
                output_fields=["count(*)"],
                timeout=_CONNECT_TIMEOUT_S,
                consistency_level=_FRESH,
            )
        return int(rows[0]["count(*)"])

    def get(self, ids: Sequence[int]) -> list[Stored]:
        return [_stored(row) for row in self._get(ids, _ALL_FIELDS)]

    def present(self, ids: Sequence[int]) -> set[int]:
        return {int(row["id"]) for row in self._get(ids, ["id"])}

    def _get(self, ids: Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        if not ids:
            return []
        with _reported("get"):
            rows: list[dict[str, Any]] = self._client.get(
                self._collection,
                list(ids),
                output_fields=fields,
                timeout=_WRITE_TIMEOUT_S,
                consistency_level=_FRESH,
            )
        return rows

    def scan(
        self, tenant: str | None = None, batch: int = 500, embeddings: bool = True
    ) -> Iterator[list[Stored]]:
        only = "" if tenant is None else f" and {_of_tenant(tenant)}"
        last = -1
        while True:
            # Of what a filter leaves, Milvus gives the smallest ids, on which its own iterator
            # rests as well; that one sees no fresh writes on a server.
            with _reported("scan"):
                rows = self._client.query(
                    self._collection,
                    filter=f"id > {last}{only}",
                    output_fields=_ALL_FIELDS if embeddings else _PLAIN_FIELDS,
                    limit=batch,
                    timeout=_WRITE_TIMEOUT_S,
                    # What was written before the scan is there from its first page on; a server
                    # takes 0.2 s to make sure of that.
                    consistency_level=_FRESH if last < 0 else _BOUNDED,
                )
            if not rows:
                return
            found = sorted((_stored(row) for row in rows), key=lambda stored: stored[0].id)
            last = found[-1][0].id
            yield found

    def compact(self) -> None:
        """Let Milvus drop for good what was deleted; it does so in the background."""
        with _reported("compact"):
            self._client.compact(self._collection, timeout=_WRITE_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class LazyMilvusStore:
    """A :class:`MilvusStore` that outlives outages of Milvus, also one at the start.

    While Milvus does not answer, every call raises UnavailableError at once: a request must
    not wait for a store that is away. A thread looks meanwhile whether it is back.

    Raises:
        ConfigurationError: Milvus answers, and the collection is another model's.
    """

    def __init__(self, settings: RetrievalSettings, embedding: EmbedderSpec) -> None:
        self._settings = settings
        self._embedding = embedding
        self._lock = threading.Lock()
        self._store: MilvusStore | None = None
        self._problem: Exception | None = None
        self._closed = threading.Event()
        try:
            self._open()
        except UnavailableError as error:
            self._suspend(error)

    def _open(self) -> None:
        if self._store is None:
            self._store = MilvusStore(
                self._settings, self._embedding.name, self._embedding.dimension
            )
        else:
            self._store.open()

    def _suspend(self, problem: UnavailableError) -> None:
        """Refuse calls until Milvus is back."""
        with self._lock:
            if self._problem is not None or self._closed.is_set():
                return
            self._problem = problem
        logger.warning("example store suspended: %s", problem)
        threading.Thread(target=self._recover, name="milvus-recovery", daemon=True).start()

    def _recover(self) -> None:
        while True:
            try:
                self._open()
            except Exception as error:  # the store stays suspended whatever it is
                if isinstance(error, ConfigurationError) and str(error) != str(self._problem):
                    logger.error("example store: %s", error)
                self._problem = error
            else:
                self._problem = None
                logger.warning("example store is back")
                return
            if self._closed.wait(_RECOVER_EVERY_S):
                return

    def _call(self, call: Callable[[MilvusStore], _T]) -> _T:
        problem, store = self._problem, self._store
        if problem is not None or store is None:
            raise UnavailableError(f"example store suspended: {problem}")
        try:
            return call(store)
        except UnavailableError as error:
            self._suspend(error)
            raise

    def search(
        self,
        embeddings: NDArray[np.float32],
        queries: Sequence[Query],
        top_n: int,
        now_ms: int,
        fresh: bool = False,
    ) -> list[list[Candidate]]:
        return self._call(lambda store: store.search(embeddings, queries, top_n, now_ms, fresh))

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        self._call(lambda store: store.upsert(examples, embeddings))

    def delete(self, ids: Iterable[int]) -> None:
        self._call(lambda store: store.delete(ids))

    def count(self) -> int:
        return self._call(lambda store: store.count())

    def get(self, ids: Sequence[int]) -> list[Stored]:
        return self._call(lambda store: store.get(ids))

    def present(self, ids: Sequence[int]) -> set[int]:
        return self._call(lambda store: store.present(ids))

    def scan(
        self, tenant: str | None = None, batch: int = 500, embeddings: bool = True
    ) -> Iterator[list[Stored]]:
        return self._call(lambda store: store.scan(tenant, batch, embeddings))

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._closed.set()
        if self._store is not None:
            self._store.close()


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Errors of pymilvus as ours. A deadline reaches us as gRPC's own exception."""
    try:
        yield
    except MilvusException as error:
        message = f"Milvus {what}: {error.message}"
        if isinstance(error, ParamError | DataNotMatchException) or error.code in _BAD_DATA:
            raise InvalidRequestError(message) from error
        raise UnavailableError(message) from error
    except grpc.RpcError as error:
        code = error.code().name if hasattr(error, "code") else type(error).__name__
        raise UnavailableError(f"Milvus {what}: {code}") from error


def _of_tenant(tenant: str) -> str:
    return f"tenant == {json.dumps(tenant, ensure_ascii=False)}"


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


def _stored(row: Any) -> Stored:
    values = {name: row[name] for name, _, _ in _SCALARS if name != "num_bytes"}
    embedding = np.asarray(row.get("embedding", ()), dtype=np.float32)
    return Example(id=int(row["id"]), **values), embedding


def _row(example: Example, embedding: NDArray[np.float32]) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(example, name) for name, _, _ in _SCALARS}
    row["id"] = example.id
    row["embedding"] = np.asarray(embedding, dtype=np.float32)
    return row
