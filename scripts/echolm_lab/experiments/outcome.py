"""What an experiment gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from echolm_lab.report.check import Check


@dataclass(frozen=True)
class Outcome:
    """One experiment with one seed.

    Attributes:
        checks: the same measures in the same order for each seed.
        figures: all else that was measured, JSON values.
    """

    checks: tuple[Check, ...]
    figures: dict[str, Any]
