"""How good answers are, alone and against those of the large LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echolm_lab.load import Run
from echolm_lab.tasks import grade

HOLDS_QUALITY = 0.495
"""Win rate against the large LLM alone from which a policy is as good."""

_SAME = 1e-6


def scores(run: Run) -> list[float]:
    """Exact grade of each request's answer; a request without an answer scores 0."""
    return [
        0.0 if record.reply is None else grade(record.item, record.reply.text)
        for record in run.records
    ]


def offload_share(run: Run) -> float:
    """Share of the answered requests that the large LLM did not answer."""
    answered = [r.reply for r in run.records if r.reply is not None]
    return sum(reply.llm != "large_llm" for reply in answered) / max(1, len(answered))


def win_rate(own: Sequence[float], reference: Sequence[float]) -> float:
    """(wins + 0.5 ties) / all of the own scores against the reference's, request by request."""
    difference = np.asarray(own) - np.asarray(reference)
    wins = float(np.mean(difference > _SAME))
    ties = float(np.mean(np.abs(difference) <= _SAME))
    return wins + 0.5 * ties


@dataclass(frozen=True)
class CachePoint:
    """A semantic cache at one threshold.

    Attributes:
        hit_rate: share of requests answered from the store.
        mean_score: over all requests, misses answered by the large LLM.
        win_rate: against the large LLM.
    """

    threshold: float
    hit_rate: float
    mean_score: float
    win_rate: float


CACHE_THRESHOLDS = tuple(round(0.6 + 0.02 * step, 2) for step in range(20))
"""Least cosines of a hit that are tried."""


def best_cache(points: Sequence[CachePoint], least_hit_rate: float = 0.5) -> CachePoint:
    """The cache with the best win rate among those that hit often enough to be worth having."""
    useful = [point for point in points if point.hit_rate >= least_hit_rate] or list(points)
    return max(useful, key=lambda point: (point.win_rate, point.threshold))


def sweep_cache(
    similarities: Sequence[float],
    cached_scores: Sequence[float],
    large_scores: Sequence[float],
    thresholds: Sequence[float],
) -> list[CachePoint]:
    """What a semantic cache would reach at each threshold.

    Args:
        similarities: of each request to its nearest stored one.
        cached_scores: grade of that stored answer for the request.
        large_scores: grade of the large LLM's own answer.
    """
    similarity, cached, large = map(np.asarray, (similarities, cached_scores, large_scores))
    points = []
    for threshold in thresholds:
        hit = similarity >= threshold
        mixed = np.where(hit, cached, large)
        points.append(
            CachePoint(
                threshold=float(threshold),
                hit_rate=float(np.mean(hit)),
                mean_score=float(np.mean(mixed)),
                win_rate=win_rate(mixed.tolist(), large.tolist()),
            )
        )
    return points
