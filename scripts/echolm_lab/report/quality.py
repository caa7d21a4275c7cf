"""When a policy's answers are as good as the large LLM's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

HOLDS_QUALITY = 0.495
"""Win rate against the large LLM alone from which a policy is as good."""

_SAME = 1e-6


def win_rate(scores: Sequence[float], reference: Sequence[float]) -> float:
    """(wins + 0.5 ties) / all, of scores against reference scores, request by request."""
    difference = np.asarray(scores) - np.asarray(reference)
    wins = float(np.mean(difference > _SAME))
    ties = float(np.mean(np.abs(difference) <= _SAME))
    return wins + 0.5 * ties
