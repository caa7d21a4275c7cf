"""What happens to examples, as events of the learning log, so that every replica knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from echolm.store.base import Example

# Kinds of events, whose bodies the functions below make.
CHANGE = "examples"  # what was stored and what was removed
REPLAY = "replay"  # an example was replayed
REPLACEMENT = "replacement"  # an example is about to replace another
FORMER_REPLACEMENT = "succession"  # the same in logs that an earlier version wrote
USAGE = "usage"  # examples were used in prompts


def change(
    stored: Sequence[Example] = (),
    removed: Sequence[int] = (),
    reason: str = "",
    repeated: Sequence[int] = (),
    replacements: Sequence[tuple[int, int]] = (),
) -> dict[str, Any]:
    """The body of a ``CHANGE``.

    Args:
        stored: examples that the store has now.
        removed: ids of examples that it has no more.
        reason: why they were removed.
        repeated: ids of examples whose request was answered the same way again.
        replacements: ids of an example that is removed and of the stored one that replaces it.
    """
    names = ["id", "num_bytes", "tenant", "source_llm", "quality", "value"]
    names += ["created_at_ms", "expires_at_ms"]
    return {
        "stored": [{name: getattr(example, name) for name in names} for example in stored],
        "removed": list(removed),
        "reason": reason,
        "repeated": list(repeated),
        "replacements": [list(pair) for pair in replacements],
    }


def replayed(id: int, times: int) -> dict[str, Any]:
    """The body of a ``REPLAY``: the example counts as replayed so many times more."""
    return {"id": id, "times": times}


def replacement(old: int, new: int, abandoned: bool = False) -> dict[str, Any]:
    """The body of a ``REPLACEMENT``: ``new`` is about to replace ``old``, or will not after all."""
    return {"old": old, "new": new, "abandoned": abandoned}


def usage(uses: Mapping[int, tuple[int, float, float]]) -> dict[str, Any]:
    """The body of a ``USAGE``.

    ``uses`` has for each example's id the number of prompts that held it, the offloads that it is
    credited with, and the sum of its gains (see :mod:`echolm.examples.usage`).
    """
    return {"uses": [[i, n, round(c, 4), round(g, 4)] for i, (n, c, g) in uses.items()]}
