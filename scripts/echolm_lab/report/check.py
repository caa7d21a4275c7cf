"""What was measured against what must hold: checks with targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Check:
    """One target and one measured value.

    Attributes:
        kind: whether the value must be at least or at most the target.
    """

    measure: str
    target: float
    value: float
    kind: Literal["at_least", "at_most"] = "at_least"

    @property
    def holds(self) -> bool:
        """False also where nothing could be measured."""
        if math.isnan(self.value):
            return False
        return self.value >= self.target if self.kind == "at_least" else self.value <= self.target


def summarise(seeds: Sequence[Sequence[Check]]) -> list[dict[str, Any]]:
    """Mean and spread of every check over seeds; it holds if it does on the mean.

    Args:
        seeds: the checks of each seed, the same ones in the same order.
    """
    rows = []
    for same in zip(*seeds, strict=True):
        values = np.array([check.value for check in same])
        mean = Check(same[0].measure, same[0].target, float(values.mean()), same[0].kind)
        rows.append(
            asdict(mean)
            | {
                "holds": mean.holds,
                "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                "seeds": [finite(v) for v in values.tolist()],
                "holds_in": sum(check.holds for check in same),
            }
            | {"value": finite(mean.value)}
        )
    return rows


def finite(value: float) -> float | None:
    """The value for JSON, which knows no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def jsonable(value: Any) -> Any:
    """The value for JSON: NaN and infinity, which it does not know, as null."""
    if isinstance(value, dict):
        return {key: jsonable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
