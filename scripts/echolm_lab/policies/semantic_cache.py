"""A semantic cache: the nearest stored answer, if it is near enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echolm_lab.policies.base import AnswerPolicy, Reply
from echolm_lab.policies.nearest import NearestAnswers
from echolm_lab.report.quality import win_rate
from echolm_lab.tasks import Item


class SemanticCache:
    """Returns the nearest stored answer above a similarity, else the large LLM's answer.

    Args:
        large: answers what the cache does not.
        threshold: least cosine of a hit.
    """

    name = "semantic_cache"

    def __init__(self, nearest: NearestAnswers, large: AnswerPolicy, threshold: float) -> None:
        self._nearest = nearest
        self._large = large
        self._threshold = threshold

    async def send(self, item: Item) -> Reply:
        neighbour = await self._nearest.find(item.text)
        if neighbour.similarity >= self._threshold:
            return Reply(neighbour.response, "cache")
        return await self._large.send(item)


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
