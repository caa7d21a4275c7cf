"""What a rating of an answer is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

_FAR = -20.0  # from here on the series below is exact to 2e-6, and the difference loses digits


def value_of_rating(
    scores: Sequence[float], stds: Sequence[float], rated: int, noise: float
) -> float:
    """Logarithm of the expected improvement of the decision by one rating of an arm, in quality.

    The knowledge gradient (Frazier, Powell, Dayanik 2008) at the request's own context: a
    rating moves the rated arm's mean by a normal amount with the standard deviation
    ``std^2 / sqrt(std^2 + noise^2)``, and the decision improves as far as that changes which arm
    is the best. Where the arms are many such deviations apart the improvement is less than the
    smallest number, but its logarithm still says which of two ratings is worth more.

    Args:
        scores: posterior mean of each arm's quality, less cost and load bias; an arm that cannot
            be chosen has minus infinity.
        stds: posterior standard deviation of each arm's expected quality.
        rated: index of the arm that would be rated.
        noise: standard deviation of a rating around the arm's model.

    Returns:
        Minus infinity if no rating can change the decision.
    """
    std, others = stds[rated], [score for i, score in enumerate(scores) if i != rated]
    gap = abs(scores[rated] - max(others)) if others else math.inf
    move = std * (std / math.hypot(std, noise)) if std > 0.0 else 0.0
    if not move > 0.0 or not math.isfinite(gap):
        return -math.inf
    return math.log(move) + _log_expected_excess(-gap / move)


def _log_expected_excess(z: float) -> float:
    """log E[max(0, z + N(0, 1))] = log(phi(z) + z Phi(z)) for z <= 0."""
    if z > _FAR:
        density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
        return math.log(density + z * 0.5 * math.erfc(-z / math.sqrt(2.0)))
    # phi(z) (1/z^2 - 3/z^4 + 15/z^6 - ...): repeated integration by parts.
    u = 1.0 / z / z
    series = 1.0 - 3.0 * u + 15.0 * u * u
    return -0.5 * z * z - 0.5 * math.log(2.0 * math.pi) - 2.0 * math.log(-z) + math.log(series)
