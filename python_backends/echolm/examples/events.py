"""What happens to examples, as events of the learning log, so that every replica knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from echolm.retrieval.store import Example

CHANGE = "examples"
"""Kind of an event that says what was stored and what was removed; see :func:`change`."""

USAGE = "usage"
"""Kind of an event that says which examples stood in prompts; see :func:`usage`."""


def change(
    stored: Sequence[Example] = (),
    removed: Sequence[int] = (),
    reason: str = "",
    repeated: Sequence[int] = (),
) -> dict[str, Any]:
    """The body of a ``CHANGE``.

    Args:
        stored: examples that the store has now.
        removed: ids of those that it has no more.
        reason: why they were removed.
        repeated: ids of those whose request was answered the same way again.
    """
    return {
        "stored": [
            {
                "id": e.id,
                "num_bytes": e.num_bytes,
                "tenant": e.tenant,
                "source_llm": e.source_llm,
                "quality": e.quality,
                "created_at_ms": e.created_at_ms,
                "expires_at_ms": e.expires_at_ms,
            }
            for e in stored
        ],
        "removed": list(removed),
        "reason": reason,
        "repeated": list(repeated),
    }


def usage(uses: Mapping[int, tuple[int, float, float]]) -> dict[str, Any]:
    """The body of a ``USAGE``.

    Args:
        uses: for each example's id how often it stood in a prompt, the offloads that it is
            credited with, and the sum of its gains (see :class:`~echolm.examples.usage`).
    """
    return {"uses": [[i, n, round(c, 4), round(g, 4)] for i, (n, c, g) in uses.items()]}
