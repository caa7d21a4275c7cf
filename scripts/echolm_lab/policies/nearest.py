"""The answer to the most similar past request, copied as it is.

What an LLM with that answer in its prompt adds to it is the difference to this policy.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import tritonclient.grpc.aio as grpc_aio
from echolm.clock import now_ms
from echolm.primitives import DEFAULT_TENANT
from echolm.store.base import ExampleStore, Query

from echolm_lab.policies.base import Reply
from echolm_lab.policies.static_router import embedding
from echolm_lab.tasks import Item


@dataclass(frozen=True)
class Neighbour:
    """The nearest stored interaction of a request; similarity -1 if there is none."""

    similarity: float
    response: str


class NearestAnswers:
    """Finds the stored interaction that is most similar to a request.

    Args:
        grpc: of the server that embeds the request.
        store: where the interactions are.
        system_prompt: that of all requests.
    """

    def __init__(
        self,
        grpc: grpc_aio.InferenceServerClient,
        store: ExampleStore,
        system_prompt: str = "",
    ) -> None:
        self._grpc = grpc
        self._store = store
        self._query = Query.of(DEFAULT_TENANT, system_prompt)

    async def find(self, text: str) -> Neighbour:
        """The interaction nearest to a text."""
        vector = await embedding(self._grpc, text)
        [found] = await asyncio.to_thread(
            self._store.search, vector[None], [self._query], 1, now_ms()
        )
        return Neighbour(found[0].similarity, found[0].response) if found else Neighbour(-1.0, "")


class CopyNearest:
    """Answers with the nearest stored answer, however far it is."""

    name = "copy_nearest"

    def __init__(self, nearest: NearestAnswers) -> None:
        self._nearest = nearest

    async def send(self, item: Item) -> Reply:
        return Reply((await self._nearest.find(item.text)).response, "cache")
