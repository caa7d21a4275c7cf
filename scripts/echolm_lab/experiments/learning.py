"""EchoLM learns from few ratings, and is then compared with every other policy.

The store holds the large LLM's past answers. EchoLM answers a live stream, of which a random
share is rated; all policies then get the same requests that follow in the stream.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from echolm.llm.chat_template import load_chat_template
from echolm.serving.attach import running_settings
from echolm.wiring.llms import build_llm_clients

from echolm_lab.experiments.baselines import static_routing, sweep
from echolm_lab.experiments.bench import Bench, RatedRun, Site
from echolm_lab.experiments.load import Run, offload_share, scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.policies.nearest import CopyNearest
from echolm_lab.policies.random_examples import RandomExamples
from echolm_lab.policies.semantic_cache import CachePoint, SemanticCache, best_cache
from echolm_lab.policies.similar_examples import SIMILAR_ONLY
from echolm_lab.report.check import Check
from echolm_lab.report.quality import HOLDS_QUALITY, win_rate
from echolm_lab.tasks import PastInteraction, WorkItem


@dataclass(frozen=True)
class Row:
    """One policy's place between quality and throughput."""

    policy: str
    requests: int
    failed: int
    mean_score: float
    win_rate: float
    offload_share: float
    throughput: float
    p50_s: float
    p99_s: float

    @classmethod
    def of(cls, policy: str, run: Run, large_scores: Sequence[float]) -> Row:
        grades = scores(run)
        return cls(
            policy,
            len(run.records),
            run.failed,
            float(np.mean(grades)),
            win_rate(grades, large_scores),
            offload_share(run),
            run.steady_throughput,
            run.latency_quantile(0.5),
            run.latency_quantile(0.99),
        )


async def run(bench: Bench) -> Outcome:
    """All policies on the same new requests; about four minutes a seed."""
    sizes, past = bench.sizes, bench.past()
    stream = bench.stream(sizes.learning + sizes.requests)
    learning, new = stream[: sizes.learning], stream[sizes.learning :]
    async with bench.serve("fixed", past, SIMILAR_ONLY) as site:
        rows, points, large_scores = await _fixed(bench, site, past, new)
    dice = random.Random(bench.seed)
    async with bench.serve("echolm", past) as site:
        rated = await site.answer_and_rate(
            learning, lambda reply: dice.random() < sizes.learning_rated
        )
        echolm = Row.of("echolm", await site.answer(site.echolm(), new), large_scores)
    good = [row for row in rows if row.win_rate >= HOLDS_QUALITY]
    best = max(good, key=lambda row: row.throughput)
    recent = rated.offloaded[-1_000:]
    return Outcome(
        checks=(
            Check("echolm: win rate against always_large", HOLDS_QUALITY, echolm.win_rate),
            Check("echolm: offload share, last 1,000", 0.75, float(np.mean(recent))),
            Check("echolm: offload share, new requests", 0.75, echolm.offload_share),
            Check(
                "throughput over the best other that holds quality",
                1.3,
                echolm.throughput / best.throughput,
            ),
        ),
        figures={
            "policies": [asdict(row) for row in (*rows, echolm)],
            "best_other": best.policy,
            "semantic_cache_sweep": [asdict(point) for point in points],
            "ratings": rated.total,
            "failed": rated.run.failed,
            "curve": _curve(rated),
        },
    )


async def _fixed(
    bench: Bench, site: Site, past: Sequence[PastInteraction], new: Sequence[WorkItem]
) -> tuple[list[Row], list[CachePoint], list[float]]:
    """The policies that do not learn while they serve."""
    large, small = site.large(), site.small()
    large_run = await site.answer(large, new)
    small_run = await site.answer(small, new)
    reference = scores(large_run)
    at_random = RandomExamples(
        build_llm_clients(running_settings(site.endpoints.data_dir))["small_llm"],
        load_chat_template(site.settings.llm("small_llm").chat_template, None),
        [(e.item.text, e.response) for e in past],
        site.settings.retrieval.num_examples,
        bench.seed,
    )
    runs: dict[str, Run] = {
        large.name: large_run,
        small.name: small_run,
        at_random.name: await site.answer(at_random, new),
        "similar_examples": await site.answer(site.small_with_examples(), new),
    }
    static = await static_routing(site, past[: bench.sizes.labelled], HOLDS_QUALITY)
    runs[static.name] = await site.answer(static, new)
    copying = CopyNearest(site.nearest)
    runs[copying.name] = await site.answer(copying, new)
    points = await sweep(site, new, reference, scores(runs[copying.name]))
    for suffix, point in _worth_running(points):
        cache = SemanticCache(site.nearest, large, point.threshold)
        name = f"{cache.name}{suffix}"
        runs[name] = await site.answer(cache, new, name)
    return [Row.of(name, run, reference) for name, run in runs.items()], points, reference


def _worth_running(points: Sequence[CachePoint]) -> list[tuple[str, CachePoint]]:
    """The cache that is worth having, and the one that hits most while it holds quality."""
    holding = [point for point in points if point.win_rate >= HOLDS_QUALITY and point.hit_rate > 0]
    useful = [("", best_cache(points))]
    if holding:
        useful.append(("_safe", max(holding, key=lambda point: point.hit_rate)))
    return useful


def _curve(rated: RatedRun, parts: int = 12) -> list[dict[str, Any]]:
    """Score and offload share of consecutive parts of the stream."""
    blocks = np.array_split(np.arange(len(rated.scores)), min(parts, len(rated.scores)))
    grades, offloaded = np.array(rated.scores), np.array(rated.offloaded)
    return [
        {
            "requests": int(block[-1]) + 1,
            "ratings": int(rated.ratings[int(block[-1])]),
            "mean_score": float(grades[block].mean()),
            "offload_share": float(offloaded[block].mean()),
        }
        for block in blocks
    ]
