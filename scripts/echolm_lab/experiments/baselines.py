"""Baselines that need a running server to be prepared: semantic cache, static router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
import tritonclient.grpc.aio as grpc_aio

from echolm_lab.experiments.bench import Site
from echolm_lab.experiments.load import scores
from echolm_lab.policies.semantic_cache import CACHE_THRESHOLDS, CachePoint, sweep_cache
from echolm_lab.policies.static_router import StaticRouter, StaticRouting, calibrate, embedding
from echolm_lab.report.progress import Stage
from echolm_lab.tasks import Item, PastInteraction

_AT_ONCE = 8
T = TypeVar("T")


async def sweep(
    site: Site,
    items: Sequence[Item],
    large_scores: Sequence[float],
    copied_scores: Sequence[float],
) -> list[CachePoint]:
    """The semantic cache at every threshold.

    Args:
        copied_scores: of the answer to the nearest stored request.
    """
    title = "semantic cache: nearest answers"
    neighbours = await _ask(site, items, title, lambda _, text: site.nearest.find(text))
    similarities = [neighbour.similarity for neighbour in neighbours]
    return sweep_cache(similarities, copied_scores, large_scores, CACHE_THRESHOLDS)


async def static_routing(
    site: Site, labelled: Sequence[PastInteraction], least_win_rate: float
) -> StaticRouting:
    """A static router, trained on one half of the labelled past and calibrated on the other.

    Args:
        labelled: answers of the large LLM; the small one answers the same requests here.
    """
    small = site.small()
    items = [interaction.item for interaction in labelled]
    run = await site.answer(small, items, "labels for the static router")
    vectors = await _ask(site, items, "embeddings for the static router", embedding)
    small_scores = scores(run)
    large = [interaction.item.score(interaction.response) for interaction in labelled]
    x = np.stack(vectors)
    half = len(items) // 2
    router = StaticRouter()
    router.fit(
        x[:half],
        [s >= ref - 1e-6 for s, ref in zip(small_scores[:half], large[:half], strict=True)],
    )
    threshold = calibrate(
        router.predict(x[half:]), small_scores[half:], large[half:], least_win_rate
    )
    return StaticRouting(site.grpc, router, threshold, small, site.large())


async def _ask(
    site: Site,
    items: Sequence[Item],
    title: str,
    question: Callable[[grpc_aio.InferenceServerClient, str], Awaitable[T]],
) -> list[T]:
    """The server's answer about each request."""
    answers: list[T] = []
    with Stage(site.console, title, len(items)) as stage:
        for start in range(0, len(items), _AT_ONCE):
            part = items[start : start + _AT_ONCE]
            answers += await asyncio.gather(*(question(site.grpc, item.text) for item in part))
            stage.step_by(len(part))
    return answers
