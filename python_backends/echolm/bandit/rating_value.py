"""What a rating of an answer is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence


def value_of_rating(
    scores: Sequence[float], stds: Sequence[float], rated: int, noise: float
) -> float:
    """Expected improvement of the decision by one rating of an arm, in quality.

    The knowledge gradient (Frazier, Powell, Dayanik 2008) at the request's own context: a
    rating moves the rated arm's mean by a normal amount with the standard deviation
    ``std^2 / sqrt(std^2 + noise^2)``, and the decision improves as far as that changes which arm
    is the best.

    Args:
        scores: posterior mean of each arm's quality, less cost and load bias.
        stds: posterior standard deviation of each arm's expected quality.
        rated: index of the arm that would be rated.
        noise: standard deviation of a rating around the arm's model.
    """
    if len(scores) < 2 or stds[rated] <= 0.0:
        return 0.0
    others = max([score for i, score in enumerate(scores) if i != rated])
    move = stds[rated] ** 2 / math.hypot(stds[rated], noise)
    z = -abs(scores[rated] - others) / move
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return max(0.0, move * (z * 0.5 * math.erfc(-z / math.sqrt(2.0)) + density))
