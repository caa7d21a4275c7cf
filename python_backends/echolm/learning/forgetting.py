"""Forgetting by time: what was learnt long ago counts less, but never for less than a few ratings.

Forgetting by the number of ratings would depend on the traffic: a busy service would forget within
minutes what a quiet one keeps for months.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STEP = 0.99  # a step of forgetting costs O(d^3), so it waits until this share or less is left


class Forgetting:
    """How much the evidence so far still counts.

    Args:
        half_life_ms: time in which evidence loses half of its weight.
        least_kept: pieces of evidence that are kept however old they are, by their weight.

    Attributes:
        decay: what is left of evidence from the start; that of a later piece is what is left of
            the start now, divided by what was left then.
        kept: the evidence by its weight.
    """

    def __init__(self, half_life_ms: float, least_kept: float) -> None:
        self._half_life_ms, self._least_kept = half_life_ms, least_kept
        self.decay = 1.0
        self.kept = 0.0
        self._at_ms = 0  # when evidence was last forgotten

    def step(self, now_ms: int) -> float:
        """Let time pass; gives the share of its weight that the evidence so far keeps."""
        if not self._at_ms:
            self._at_ms = now_ms
        keep: float = 0.5 ** (max(0, now_ms - self._at_ms) / self._half_life_ms)
        if keep > _STEP:
            return 1.0
        self._at_ms = now_ms
        if self.kept <= self._least_kept:
            return 1.0
        keep = max(keep, self._least_kept / self.kept)
        self.kept *= keep
        self.decay *= keep
        return keep

    @property
    def configuration(self) -> dict[str, Any]:
        """All values that decide what is forgotten."""
        return {"half_life_ms": self._half_life_ms, "least_kept": self._least_kept}

    def state(self) -> dict[str, Any]:
        """For :meth:`restore`."""
        return {"decay": self.decay, "kept": self.kept, "at_ms": self._at_ms}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a :meth:`state`."""
        self.decay, self.kept = float(state["decay"]), float(state["kept"])
        self._at_ms = int(state["at_ms"])
