"""Fills a data directory's example store before a server runs on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from echolm.clock import now_ms
from echolm.embedding.texts import TextEmbedder
from echolm.serving.attach import attached
from echolm.settings import Settings
from echolm.store.base import Example, scope_key
from echolm.store.milvus import MilvusStore

_BATCH = 250
_QUALITY = 0.95  # what the large LLM's answers are usually taken for


def fill(
    settings: Settings,
    interactions: Sequence[tuple[str, str]],
    on_stored: Callable[[int], None] = lambda count: None,
    system_prompt: str = "",
) -> None:
    """Store requests and responses in ``data_dir``'s Milvus Lite file, as of the large LLM.

    Ids are 1, 2, ... in their order. No server may run on the directory meanwhile.

    Args:
        system_prompt: under which they were asked.
        on_stored: called with how many more are stored.
    """
    embed = TextEmbedder(settings.embedding)
    with attached(settings) as found:
        store = MilvusStore(found.retrieval, embed.name, embed.dimension)
        now = now_ms()
        for start in range(0, len(interactions), _BATCH):
            part = interactions[start : start + _BATCH]
            examples = [
                Example(
                    id=start + place + 1,
                    request=request,
                    response=response,
                    tenant="public",
                    scope=scope_key("public", system_prompt),
                    source_llm=settings.strongest_llm.name,
                    quality=_QUALITY,
                    created_at_ms=now,
                    updated_at_ms=now,
                )
                for place, (request, response) in enumerate(part)
            ]
            store.upsert(examples, embed([request for request, _ in part]))
            on_stored(len(part))
        store.close()
