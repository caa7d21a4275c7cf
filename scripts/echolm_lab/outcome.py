"""What an experiment hands back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from echolm_lab.report.check import Verdict


@dataclass(frozen=True)
class Outcome:
    """One experiment with one seed.

    Attributes:
        verdicts: the same measures in the same order for each seed.
        figures: all else that was measured, JSON values.
    """

    verdicts: tuple[Verdict, ...]
    figures: dict[str, Any]
