"""What happens to examples, as events of the learning log, so that every replica knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from echolm.store.base import Example

CHANGE = "examples"
"""Kind of an event that says what was stored and what was removed; see :func:`change`."""

REPLAY = "replay"
"""Kind of an event that says that an example was replayed; see :func:`replayed`."""

SUCCESSION = "succession"
"""Kind of an event that says which example is about to replace which; see :func:`succession`."""

USAGE = "usage"
"""Kind of an event that says which examples stood in prompts; see :func:`usage`."""


def change(
    stored: Sequence[Example] = (),
    removed: Sequence[int] = (),
    reason: str = "",
    repeated: Sequence[int] = (),
    succeeded: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """The body of a ``CHANGE``.

    Args:
        stored: examples that the store has now.
        removed: ids of those that it has no more.
        reason: why they were removed.
        repeated: ids of those whose request was answered the same way again.
        succeeded: pairs of ids of which the second, stored, takes the place of the first, removed.
    """
    return {
        "stored": [
            {
                "id": e.id,
                "num_bytes": e.num_bytes,
                "tenant": e.tenant,
                "source_llm": e.source_llm,
                "quality": e.quality,
                "value": e.value,
                "created_at_ms": e.created_at_ms,
                "expires_at_ms": e.expires_at_ms,
            }
            for e in stored
        ],
        "removed": list(removed),
        "reason": reason,
        "repeated": list(repeated),
        "succeeded": [list(pair) for pair in succeeded],
    }


def replayed(id: int, times: int) -> dict[str, Any]:
    """The body of a ``REPLAY``: the example counts as replayed so many times more."""
    return {"id": id, "times": times}


def succession(old: int, new: int, abandoned: bool = False) -> dict[str, Any]:
    """The body of a ``SUCCESSION``: the second id is about to take the place of the first.

    Args:
        abandoned: it will not, after all.
    """
    return {"old": old, "new": new, "abandoned": abandoned}


def usage(uses: Mapping[int, tuple[int, float, float]]) -> dict[str, Any]:
    """The body of a ``USAGE``.

    Args:
        uses: for each example's id how often it stood in a prompt, the offloads that it is
            credited with, and the sum of its gains (see :class:`~echolm.examples.usage`).
    """
    return {"uses": [[i, n, round(c, 4), round(g, 4)] for i, (n, c, g) in uses.items()]}
