"""The example store in Milvus: Milvus Lite on one machine, a Milvus server on many."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from pymilvus import DataType, MilvusClient, MilvusException
from pymilvus.exceptions import DataNotMatchException, ParamError

from echolm.errors import ConfigurationError, InvalidRequestError, UnavailableError
from echolm.primitives import Candidate
from echolm.settings import RetrievalSettings
from echolm.store.base import MAX_TEXT_BYTES, Example, Query, Stored
from echolm.store.checks import check_example, check_fields, check_stored, check_vector
from echolm.store.columns import FOUND_FIELDS, read_candidates, search, search_request

logger = logging.getLogger("echolm")

_RECOVER_EVERY_S = 1.0
_CONNECT_TIMEOUT_S = 10.0
_WRITE_TIMEOUT_S = 30.0
# Consistency levels of a Milvus server: requests do with examples that are a few seconds late.
_BOUNDED, _FRESH = "Bounded", "Strong"
_READ_FRESH: dict[str, Any] = {"timeout": _WRITE_TIMEOUT_S, "consistency_level": _FRESH}
_BAD_DATA = (1100, 1101, 1102)  # Milvus' codes: parameter invalid, missing, too large

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
    ("answer_keys", DataType.VARCHAR, {"max_length": 256}),
)
_SCHEMA = 2
_ADDED = {"answer_keys": 2}  # the schema that brought a field; collections of earlier ones lack it
_PLAIN_FIELDS = ("id", *(name for name, _, _ in _SCALARS))
_ALL_FIELDS = ("embedding", *_PLAIN_FIELDS)
_LEAST_ID = -(2**63) + 1
_NOT_IN_FILTERS = frozenset("\"'\\{}%")
_EXPIRY_STEP_MS = 60_000  # the filter text changes once a minute, so Milvus can reuse its plan


class MilvusStore:
    """An :class:`~echolm.store.base.ExampleStore` in one Milvus collection.

    The collection's description holds the embedding model's name, its dimension D and the
    schema's version; a collection made for another model is refused. One of an earlier schema is
    used as it is, without what it has no field for.

    Args:
        wait: whether a Milvus that does not answer may come back, as in a server. Every call then
            raises UnavailableError at once, since no request must wait for a store that is away,
            and a thread looks whether it is back. Otherwise each call tries Milvus anew.

    Raises:
        ConfigurationError: the collection belongs to another embedding model or schema.
        UnavailableError: Milvus does not answer, and ``wait`` is False.
    """

    def __init__(
        self, settings: RetrievalSettings, embedding_name: str, dimension: int, wait: bool = False
    ) -> None:
        if not settings.milvus_uri:
            raise ConfigurationError(
                "retrieval.milvus_uri: expected an address, got none; `echolm serve` sets it to "
                "its Milvus Lite, elsewhere give that of your Milvus server"
            )
        self._settings = settings
        self._collection = settings.collection
        self.embedding_name, self.dimension = embedding_name, dimension
        self._identity = {"embedding": embedding_name, "dimension": dimension, "schema": _SCHEMA}
        self._schema = _SCHEMA  # that of the collection, once it is open
        self._client: MilvusClient | None = None
        self._lock = threading.Lock()
        self._wait = wait
        self._problem: Exception | None = None
        self._closed = threading.Event()
        # It logs several tracebacks for each failed call, which we raise and report ourselves.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        try:
            self._open()
        except UnavailableError as error:
            if not wait:
                raise
            self._suspend(error)

    @classmethod
    def existing(cls, settings: RetrievalSettings) -> MilvusStore:
        """A collection whatever model made it; ConfigurationError if there is none of ours."""
        collection = settings.collection
        with _reported(f"at {settings.milvus_uri}"), closing(_connect(settings)) as client:
            collections = client.list_collections(timeout=_CONNECT_TIMEOUT_S)
            if collection not in collections:
                raise ConfigurationError(
                    f"Milvus collection: expected one of {sorted(collections)}, got {collection!r}"
                )
            description = _description(client, collection)
        try:
            identity = json.loads(description)
            name, dimension = str(identity["embedding"]), int(identity["dimension"])
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"Milvus collection {collection!r}: expected one that EchoLM made, got the "
                f"description {description!r}"
            ) from None
        return cls(settings, name, dimension)

    def _open(self) -> None:
        """Make sure that Milvus answers and the collection exists, is ours and can be searched."""
        if self._client is None:
            with _reported(f"at {self._settings.milvus_uri}"):
                self._client = _connect(self._settings)
        with _reported("collection"):
            self._open_collection(self._client)

    def _open_collection(self, client: MilvusClient) -> None:
        exists = partial(client.has_collection, self._collection, timeout=_CONNECT_TIMEOUT_S)
        if not exists():
            try:
                self._create(client)
            except MilvusException:
                if not exists():  # else another process of ours has just created it
                    raise
        description = _description(client, self._collection)
        try:
            identity = json.loads(description)
        except json.JSONDecodeError:
            identity = None
        schemas = [{**self._identity, "schema": n} for n in range(1, _SCHEMA + 1)]
        if identity not in schemas:
            raise ConfigurationError(
                f"Milvus collection {self._collection!r}: expected one made for {self._identity}, "
                f"got {identity or description!r}; set retrieval.collection to another name, or "
                "configure the embedding model that made it"
            )
        self._schema = int(identity["schema"])
        if self._schema < _SCHEMA:
            logger.warning(
                "Milvus collection %r is of an earlier version: its answers are never given as "
                "they are; to change that, set retrieval.collection to a new name and run "
                "`echolm examples reembed --from %s`",
                self._collection,
                self._collection,
            )
        replicas = self._settings.milvus_replicas
        client.load_collection(self._collection, timeout=_WRITE_TIMEOUT_S, replica_number=replicas)

    @property
    def keeps_answer_keys(self) -> bool:
        """Whether the collection has a field for ``Example.answer_keys``."""
        return "answer_keys" in self._fields(_PLAIN_FIELDS)

    def _fields(self, names: Sequence[str]) -> list[str]:
        """Those of the fields that the collection has."""
        return [name for name in names if _ADDED.get(name, 1) <= self._schema]

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
                self._problem = None
                logger.warning("example store is back")
                return
            except Exception as error:  # the store stays suspended whatever it is
                if isinstance(error, ConfigurationError) and str(error) != str(self._problem):
                    logger.error("example store: %s", error)
                self._problem = error
            if self._closed.wait(_RECOVER_EVERY_S):
                return

    @contextmanager
    def _calling(self, what: str) -> Iterator[MilvusClient]:
        """The client for one call; one that Milvus does not answer suspends the store."""
        if self._problem is not None or self._client is None:
            raise UnavailableError(f"example store suspended: {self._problem}")
        try:
            with _reported(what):
                yield self._client
        except UnavailableError as error:
            if self._wait:
                self._suspend(error)
            raise

    def _create(self, client: MilvusClient) -> None:
        description = json.dumps(self._identity, sort_keys=True)
        schema = client.create_schema(
            auto_id=False, enable_dynamic_field=False, description=description
        )
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=self._identity["dimension"])
        s = self._settings
        for name, datatype, options in _SCALARS:
            is_key = s.partition_by_tenant and name == "tenant"
            schema.add_field(name, datatype, is_partition_key=is_key, **options)
        index = client.prepare_index_params()
        params = dict(s.index_params)
        index.add_index("embedding", s.index_type, metric_type="COSINE", params=params)
        client.create_collection(
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
        if embeddings.shape != (len(queries), self.dimension):
            expected = f"shape [{len(queries)}, {self.dimension}]"
            raise InvalidRequestError.of("embeddings", expected, f"{list(embeddings.shape)}")
        # Rows of one scope share a search; usually that is the whole batch.
        rows_of_scope: dict[int, list[int]] = {}
        for row, query in enumerate(queries):
            rows_of_scope.setdefault(query.scope, []).append(row)
        not_before = now_ms // _EXPIRY_STEP_MS * _EXPIRY_STEP_MS
        timeout, level = self._settings.search_timeout_s, _BOUNDED
        if fresh:
            timeout, level = _WRITE_TIMEOUT_S, _FRESH
        fields = self._fields(FOUND_FIELDS)
        candidates: list[list[Candidate]] = [[] for _ in queries]
        for scope, rows in rows_of_scope.items():
            visible = f"scope == {scope} and expires_at_ms > {not_before}"
            if self._settings.partition_by_tenant:
                # The scope implies the tenant, by which Milvus finds the partition.
                only = _of_tenant(queries[rows[0]].tenant)
                visible += f" and {only}" if only else ""
            params = self._settings.search_params
            request = search_request(
                self._collection, embeddings[rows], visible, top_n, fields, params, level
            )
            with self._calling("search") as client:
                results = search(client, request, timeout)
            # The scope is a hash; the tenant's name is what must match.
            found = read_candidates(results, [queries[row].tenant for row in rows], fields)
            for row, row_candidates in zip(rows, found, strict=True):
                candidates[row] = row_candidates
        return candidates

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        if not examples:
            return
        for example, embedding in zip(examples, embeddings, strict=True):
            check_example(example)
            check_vector(embedding, self.dimension)
        names = self._fields(_PLAIN_FIELDS)
        rows = {
            e.id: _row(e, vector, names) for e, vector in zip(examples, embeddings, strict=True)
        }
        # Not Milvus' own upsert: that of Milvus Lite reads the whole collection (80 ms at 100,000
        # rows, in which nothing else is served), and that of Milvus 2.3 no partition key.
        self.delete(self.present(list(rows)))
        with self._calling("insert") as client:
            client.insert(self._collection, list(rows.values()), timeout=_WRITE_TIMEOUT_S)

    def delete(self, ids: Iterable[int]) -> None:
        if wanted := list(ids):
            with self._calling("delete") as client:
                client.delete(self._collection, ids=wanted, timeout=_WRITE_TIMEOUT_S)

    def count(self) -> int:
        with self._calling("count") as client:
            rows = client.query(
                self._collection,
                filter="",
                output_fields=["count(*)"],
                timeout=_CONNECT_TIMEOUT_S,
                consistency_level=_FRESH,
            )
        return int(rows[0]["count(*)"])

    def get(self, ids: Sequence[int]) -> list[Stored]:
        rows = self._get(ids, self._fields(_ALL_FIELDS))
        return [stored for row in rows if (stored := self._read(row))]

    def present(self, ids: Sequence[int]) -> set[int]:
        return {int(row["id"]) for row in self._get(ids, ["id"])}

    def _get(self, ids: Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        if not ids:
            return []
        with self._calling("get") as client:
            rows: list[dict[str, Any]] = client.get(
                self._collection, list(ids), output_fields=fields, **_READ_FRESH
            )
        return rows

    def scan(
        self, tenant: str | None = None, batch: int = 500, embeddings: bool = True
    ) -> Iterator[list[Stored]]:
        fields = self._fields(_ALL_FIELDS if embeddings else _PLAIN_FIELDS)
        for rows in self._pages(fields, batch, _of_tenant(tenant)):
            read = [stored for row in rows if (stored := self._read(row))]
            if page := [one for one in read if tenant is None or one[0].tenant == tenant]:
                yield page

    def damaged(self) -> Iterator[list[int]]:
        for rows in self._pages(self._fields(_ALL_FIELDS), 500, first=_LEAST_ID):
            if ids := [int(row["id"]) for row in rows if self._read(row) is None]:
                yield ids

    def _pages(
        self, fields: list[str], batch: int, only: str = "", first: int = 0
    ) -> Iterator[list[dict[str, Any]]]:
        """All rows with an id from ``first`` on that a filter leaves, ascending, some at a time."""
        last: int | None = None
        while True:
            behind = f"id >= {first}" if last is None else f"id > {last}"
            # Of what a filter leaves, Milvus gives the smallest ids, on which its own iterator
            # rests as well; that one sees no fresh writes on a server.
            with self._calling("scan") as client:
                rows = client.query(
                    self._collection,
                    filter=f"{behind} and {only}" if only else behind,
                    output_fields=fields,
                    limit=batch,
                    timeout=_WRITE_TIMEOUT_S,
                    # What was written before the scan is there from its first page on; a server
                    # takes 0.2 s to make sure of that.
                    consistency_level=_FRESH if last is None else _BOUNDED,
                )
            if not rows:
                return
            page = sorted(rows, key=lambda row: int(row["id"]))
            last = int(page[-1]["id"])
            yield page

    def _read(self, row: Mapping[str, Any]) -> Stored | None:
        """An example; None if the row is damaged, which other programs may have written."""
        try:
            stored = _stored(row)
            check_stored(stored, self.dimension) if "embedding" in row else check_fields(stored[0])
        except (InvalidRequestError, TypeError, ValueError) as error:
            message = "example store: row %s is left out: %s; `echolm examples check --repair`"
            logger.debug(message, row["id"], error)
            return None
        return stored

    def compact(self) -> None:
        """Let Milvus drop for good what was deleted; it does so in the background."""
        with self._calling("compact") as client:
            client.compact(self._collection, timeout=_WRITE_TIMEOUT_S)

    def close(self) -> None:
        """Close the connection."""
        self._closed.set()
        if self._client is not None:
            self._client.close()


def _connect(settings: RetrievalSettings) -> MilvusClient:
    token = settings.milvus_token.get_secret_value()
    return MilvusClient(uri=settings.milvus_uri, token=token, timeout=_CONNECT_TIMEOUT_S)


def _description(client: MilvusClient, collection: str) -> str:
    described = client.describe_collection(collection, timeout=_CONNECT_TIMEOUT_S)
    return str(described.get("description", ""))


@contextmanager
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


def _of_tenant(tenant: str | None) -> str:
    """A filter that leaves all rows of a tenant, and perhaps others; empty: all rows.

    What stands for a quote, a backslash or a control character in an expression is not the same in
    every Milvus, so names with one are never written into an expression.
    """
    if tenant is None or not tenant.isprintable() or set(tenant) & _NOT_IN_FILTERS:
        return ""
    return f'tenant == "{tenant}"'


def _stored(row: Any) -> Stored:
    values = {name: row[name] for name, _, _ in _SCALARS if name in row and name != "num_bytes"}
    embedding = np.asarray(row.get("embedding", ()), dtype=np.float32)
    return Example(id=int(row["id"]), **values), embedding


def _row(example: Example, embedding: NDArray[np.float32], names: Sequence[str]) -> dict[str, Any]:
    row = {name: getattr(example, name) for name in names}
    return {**row, "embedding": np.asarray(embedding, dtype=np.float32)}
