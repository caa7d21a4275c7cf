"""EchoLM without one of its parts at a time, on the same requests.

Load is high here, so that the load bias has something to do.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from echolm_lab.experiments.bench import Bench, Changes
from echolm_lab.experiments.load import offload_share, scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.policies.base import AnswerPolicy
from echolm_lab.report.check import Check

ABLATIONS: dict[str, Changes] = {
    "echolm": {},
    "no_utility": {"retrieval": {"utility": "similarity"}},
    "fixed_number": {"retrieval": {"adaptive_num_examples": False}},
    "no_load_bias": {"routing": {"load_bias": 0.0}},
    "no_prefix_order": {"retrieval": {"order": "similarity"}},
}
NO_ROUTER = "no_router"
"""The small LLM with EchoLM's examples for every request, on the server of ``echolm``."""


async def run(bench: Bench) -> Outcome:
    """Score, offload share and throughput of each."""
    sizes, past = bench.sizes, bench.past()
    stream = bench.stream(sizes.ablation_learning + sizes.requests)
    learning, new = stream[: sizes.ablation_learning], stream[sizes.ablation_learning :]
    rows: dict[str, dict[str, Any]] = {}
    for name, changes in ABLATIONS.items():
        dice = random.Random(bench.seed)
        async with bench.serve(name, past, changes) as site:
            await site.answer_and_rate(
                learning,
                lambda reply, dice=dice: dice.random() < sizes.ablation_rated,  # type: ignore[misc]
                f"{name} learns",
            )
            policies: dict[str, AnswerPolicy] = {}
            if name == "echolm":
                policies[NO_ROUTER] = site.small_with_examples(NO_ROUTER)
            policies[name] = site.echolm()
            for title, policy in policies.items():
                answers = await site.answer(policy, new, title, 2 * sizes.concurrency)
                rows[title] = {
                    "mean_score": float(np.mean(scores(answers))),
                    "offload_share": offload_share(answers),
                    "throughput": answers.steady_throughput,
                    "p99_s": answers.latency_quantile(0.99),
                    "failed": answers.failed,
                }
    whole = rows["echolm"]
    return Outcome(
        checks=tuple(
            Check(
                f"echolm's mean score over {name}'s",
                0.99,
                whole["mean_score"] / max(row["mean_score"], 1e-9),
            )
            for name, row in rows.items()
            if name != "echolm"
        ),
        figures={"rows": rows},
    )
