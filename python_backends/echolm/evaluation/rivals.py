"""What EchoLM is held against, prepared on a running server: semantic cache, static router."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from echolm.evaluation.bench import Site
from echolm.evaluation.corruption import Exchange
from echolm.evaluation.policies import StaticRouting, embedding, nearest
from echolm.evaluation.progress import Stage
from echolm.evaluation.quality import CACHE_THRESHOLDS, CachePoint, scores, sweep_cache
from echolm.evaluation.static_router import StaticRouter, calibrate
from echolm.workload import WorkItem, grade


async def sweep(
    site: Site, items: Sequence[WorkItem], large_scores: Sequence[float]
) -> list[CachePoint]:
    """The semantic cache at every threshold, from what is nearest to each request."""
    found = []
    with Stage(site.console, "semantic cache: nearest answers", len(items)) as stage:
        for item in items:
            found.append(await nearest(site.grpc, item.text))
            stage.step()
    stored = [
        grade(item, neighbour.response) if neighbour.similarity >= 0 else 0.0
        for item, neighbour in zip(items, found, strict=True)
    ]
    return sweep_cache([n.similarity for n in found], stored, large_scores, CACHE_THRESHOLDS)


async def static_routing(
    site: Site, labelled: Sequence[Exchange], least_win_rate: float
) -> StaticRouting:
    """A static router, trained on one half of the labelled past and calibrated on the other.

    Args:
        labelled: answers of the large LLM; the small one answers the same requests here.
    """
    small = site.small()
    items = [exchange.item for exchange in labelled]
    run = await site.answer(small, items, "labels for the static router")
    with Stage(site.console, "embeddings for the static router", len(items)) as stage:
        vectors = []
        for item in items:
            vectors.append(await embedding(site.grpc, item.text))
            stage.step()
    own = scores(run)
    large = [grade(exchange.item, exchange.response) for exchange in labelled]
    x = np.stack(vectors)
    half = len(items) // 2
    router = StaticRouter()
    router.fit(x[:half], [s >= ref - 1e-6 for s, ref in zip(own[:half], large[:half], strict=True)])
    threshold = calibrate(router.predict(x[half:]), own[half:], large[half:], least_win_rate)
    return StaticRouting(site.grpc, router, threshold, small, site.large())
