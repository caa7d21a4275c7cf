"""Canonical order of examples against order by similarity: what the KV cache makes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from echolm_lab.experiments.bench import Bench
from echolm_lab.experiments.load import scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.policies.llm import StreamedLLM
from echolm_lab.report.check import Check

_SETTLE_S = 1.5
"""In which the metrics page catches up."""


async def run(bench: Bench) -> Outcome:
    """The small LLM with examples, streamed, once in each order."""
    past, items = bench.past(), bench.stream(bench.sizes.prefix_requests)
    rows: dict[str, dict[str, Any]] = {}
    for order in ("similarity", "prefix"):
        async with bench.serve(f"order-{order}", past, {"retrieval": {"order": order}}) as site:
            await asyncio.sleep(_SETTLE_S)
            before = await site.client.stats()
            policy = StreamedLLM(order, site.client, "small_llm", "no-store")
            answers = await site.answer(
                policy, items, f"order: {order}", bench.sizes.calm_concurrency
            )
            await asyncio.sleep(_SETTLE_S)
            after = await site.client.stats()
        hit, prompt = (
            after.value(name, model="small_llm") - before.value(name, model="small_llm")
            for name in ("echolm_llm_prefix_hit_tokens_total", "echolm_llm_prompt_tokens_total")
        )
        rows[order] = {
            "prefix_hit_rate": hit / prompt if prompt else 0.0,
            "prompt_tokens": prompt,
            "ttft_mean_s": float(np.mean(policy.first_piece_s)),
            "ttft_p50_s": float(np.quantile(policy.first_piece_s, 0.5)),
            "mean_score": float(np.mean(scores(answers))),
            "failed": answers.failed,
        }
    own, other = rows["prefix"], rows["similarity"]
    return Outcome(
        checks=(
            Check(
                "prefix order: hit rate above similarity order's",
                0.001,
                own["prefix_hit_rate"] - other["prefix_hit_rate"],
            ),
            Check(
                "prefix order: mean TTFT over similarity order's",
                1.0,
                own["ttft_mean_s"] / max(other["ttft_mean_s"], 1e-9),
                "at_most",
            ),
            Check(
                "prefix order: mean score minus similarity order's",
                -0.01,
                own["mean_score"] - other["mean_score"],
            ),
        ),
        figures={"orders": rows},
    )
