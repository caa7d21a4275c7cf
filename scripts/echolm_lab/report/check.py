"""What was measured against what must hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """One bar and one measured value.

    Attributes:
        kind: whether the value must be at least or at most the bar.
    """

    measure: str
    bar: float
    value: float
    kind: Literal["at_least", "at_most"] = "at_least"

    @property
    def holds(self) -> bool:
        """False also where nothing could be measured."""
        if math.isnan(self.value):
            return False
        return self.value >= self.bar if self.kind == "at_least" else self.value <= self.bar


def summarise(seeds: Sequence[Sequence[Verdict]]) -> list[dict[str, Any]]:
    """Mean and spread of every verdict over seeds; it holds if it does on the mean.

    Args:
        seeds: of each seed the same verdicts in the same order.
    """
    rows = []
    for same in zip(*seeds, strict=True):
        values = np.array([verdict.value for verdict in same])
        mean = Verdict(same[0].measure, same[0].bar, float(values.mean()), same[0].kind)
        rows.append(
            asdict(mean)
            | {
                "holds": mean.holds,
                "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                "seeds": [finite(v) for v in values.tolist()],
                "holds_in": sum(verdict.holds for verdict in same),
            }
            | {"value": finite(mean.value)}
        )
    return rows


def finite(value: float) -> float | None:
    """The value for JSON, which knows no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None
