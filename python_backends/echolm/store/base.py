"""The interface to stored examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from echolm.primitives import Candidate, Sampling

MAX_TEXT_BYTES = 65_535
"""Longest request or response that a store takes, in bytes of UTF-8 (Milvus' VARCHAR)."""

NEVER = 2**62
"""``expires_at_ms`` of an example that does not expire."""

FRESH_VALUE = 0.5
"""Offloads that a new example is credited with, if no other one helps with its request."""


def scope_key(tenant: str, system_prompt: str) -> int:
    """The key under which examples may be shared: same tenant, same system prompt.

    A 63-bit hash, so that Milvus filters by comparing integers.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (tenant, system_prompt):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(digest.digest(), "big") >> 1


MAX_ANSWER_KEYS = 8
"""Answer keys that an example keeps; the oldest go first."""

REPLAYED = "replayed"
"""Stands in ``Example.answer_keys`` of an answer that replay has found; it is nobody's key."""


def answer_key(sampling: Sampling, llm: str, revision: str) -> str:
    """The key of answers that an LLM gives under one sampling, of 8 + 16 hexadecimal digits.

    A stored answer may be given again to requests with its key only. Keys of one LLM and revision
    begin alike.
    """
    # Without what has its default, so that a parameter that is added later changes no key.
    default = vars(Sampling())
    asked = {name: v for name, v in vars(sampling).items() if v != default[name]}
    return _digest(f"{llm}\0{revision}", 4) + _digest(json.dumps(asked, sort_keys=True), 8)


def _digest(text: str, size: int) -> str:
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def same_llm(a: str, b: str) -> bool:
    """Whether two answer keys are of the same LLM and revision."""
    return a[:8] == b[:8]


@dataclass(frozen=True)
class Example:
    """One stored interaction.

    Attributes:
        scope: :func:`scope_key` of tenant and system prompt.
        quality: rating of the response, 0..1.
        uses: number of prompts that held it.
        value: offloads that it was credited with when it was stored; a new example needs some, or
            it would be the first to be evicted.
        answer_keys: every :func:`answer_key` under which the response was given, separated by
            spaces; empty if it may not be given as it is.
    """

    id: int
    request: str
    response: str
    tenant: str
    scope: int
    source_llm: str
    quality: float
    created_at_ms: int
    updated_at_ms: int
    expires_at_ms: int = NEVER
    uses: int = 0
    value: float = FRESH_VALUE
    replays: int = 0
    answer_keys: str = ""

    @property
    def num_bytes(self) -> int:
        """Size of the plain text: the example's weight in the store's budget."""
        return len(self.request.encode()) + len(self.response.encode())


@dataclass(frozen=True)
class Query:
    """One row of a search: whose examples may be found; the scope is a :func:`scope_key`."""

    tenant: str
    scope: int

    @classmethod
    def of(cls, tenant: str, system_prompt: str) -> Query:
        """What a request of a tenant under a system prompt may see."""
        return cls(tenant, scope_key(tenant, system_prompt))


Stored = tuple[Example, NDArray[np.float32]]
"""An example and its embedding, FP32 [D]."""


class ExampleStore(Protocol):
    """Where examples live. For several threads; UnavailableError if it does not answer in time."""

    @property
    def keeps_answer_keys(self) -> bool:
        """Whether it has a place for ``Example.answer_keys``; an older store may not."""

    def search(
        self,
        embeddings: NDArray[np.float32],
        queries: Sequence[Query],
        top_n: int,
        now_ms: int,
        fresh: bool = False,
    ) -> list[list[Candidate]]:
        """The nearest examples of each row that its query may see, most similar first.

        Those whose quality or similarity is out of range are left out.

        Args:
            embeddings: FP32 [n, D], unit length.
            fresh: waits until all that was written before can be found, which requests do not.
        """

    def upsert(self, examples: Sequence[Example], embeddings: NDArray[np.float32]) -> None:
        """Write examples with their embeddings, FP32 [n, D].

        Raises:
            InvalidRequestError: one must not get into a store; none of them was written.
        """

    def delete(self, ids: Iterable[int]) -> None:
        """Remove examples; unknown ids are ignored."""

    def count(self) -> int:
        """Number of stored examples."""

    def get(self, ids: Sequence[int]) -> list[Stored]:
        """Those of the examples that are stored, in any order; damaged ones are left out."""

    def present(self, ids: Sequence[int]) -> set[int]:
        """Ids of those that are stored; cheaper than :meth:`get`."""

    def scan(
        self, tenant: str | None = None, batch: int = 500, embeddings: bool = True
    ) -> Iterator[list[Stored]]:
        """All examples, or those of a tenant, ascending by id, some at a time.

        Without ``embeddings``, which is much faster, these are empty. Damaged rows are left out.
        """

    def damaged(self) -> Iterator[list[int]]:
        """Ids of all rows that are no examples (:func:`echolm.store.checks.check_stored`)."""


_BACKGROUND_ROWS = 8


def search_in_background(
    store: ExampleStore, rows: Sequence[Stored], top_n: int, now_ms: int
) -> list[list[Candidate]]:
    """The nearest stored examples of each example, read afresh, in searches of a few rows each.

    Milvus Lite serves one search after the other, and many rows take as long in one search as in
    several; so requests wait for few.
    """
    neighbours: list[list[Candidate]] = []
    for start in range(0, len(rows), _BACKGROUND_ROWS):
        some = rows[start : start + _BACKGROUND_ROWS]
        queries = [Query(example.tenant, example.scope) for example, _ in some]
        embeddings = np.stack([embedding for _, embedding in some])
        neighbours += store.search(embeddings, queries, top_n, now_ms, fresh=True)
    return neighbours
