"""An in-memory example store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError
from echolm.primitives import Candidate
from echolm.store.base import Example, Query, Stored
from echolm.store.checks import check_example, check_stored, check_vector


@dataclass
class InMemoryStore:
    """An exact ExampleStore in a dictionary, for unit tests."""

    dimension: int
    embedding_name: str = "fake"
    rows: dict[int, Stored] = field(default_factory=dict)
    error: Exception | None = None
    keeps_answer_keys: bool = True
    _lock: Lock = field(default_factory=Lock, init=False)

    def search(
        self,
        embeddings: NDArray[np.float32],
        queries: Sequence[Query],
        top_n: int,
        now_ms: int,
        fresh: bool = False,
    ) -> list[list[Candidate]]:
        if self.error is not None:
            raise self.error
        with self._lock:
            rows = [row for row in self.rows.values() if not self._is_damaged(row)]
        results = []
        for embedding, query in zip(embeddings, queries, strict=True):
            scored = [
                Candidate(
                    e.id,
                    e.request,
                    e.response,
                    e.tenant,
                    e.quality,
                    float(v @ embedding),
                    e.answer_keys,
                )
                for e, v in rows
                if e.scope == query.scope and e.expires_at_ms > now_ms
            ]
            results.append(sorted(scored, key=lambda c: (-c.similarity, c.id))[:top_n])
        return results

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        if self.error is not None:
            raise self.error
        for example, embedding in zip(examples, embeddings, strict=True):
            check_example(example)
            check_vector(np.asarray(embedding), self.dimension)
        with self._lock:
            for example, embedding in zip(examples, embeddings, strict=True):
                if not self.keeps_answer_keys:
                    example = replace(example, answer_keys="")
                self.rows[example.id] = (replace(example), np.asarray(embedding, np.float32))

    def delete(self, ids: Iterable[int]) -> None:
        with self._lock:
            for i in ids:
                self.rows.pop(i, None)

    def count(self) -> int:
        return len(self.rows)

    def get(self, ids: Sequence[int]) -> list[Stored]:
        with self._lock:
            rows = [self.rows[i] for i in ids if i in self.rows]
        return [row for row in rows if not self._is_damaged(row)]

    def present(self, ids: Sequence[int]) -> set[int]:
        with self._lock:
            return self.rows.keys() & set(ids)

    def scan(
        self, tenant: str | None = None, batch: int = 500, embeddings: bool = True
    ) -> Iterator[list[Stored]]:
        with self._lock:
            rows = [self.rows[i] for i in sorted(self.rows)]
        rows = [row for row in rows if not self._is_damaged(row)]
        rows = [row for row in rows if tenant is None or row[0].tenant == tenant]
        for start in range(0, len(rows), batch):
            yield rows[start : start + batch]

    def damaged(self) -> Iterator[list[int]]:
        with self._lock:
            ids = [i for i, row in self.rows.items() if self._is_damaged(row)]
        if ids:
            yield ids

    def _is_damaged(self, row: Stored) -> bool:
        try:
            check_stored(row, self.dimension)
        except InvalidRequestError:
            return True
        return False
