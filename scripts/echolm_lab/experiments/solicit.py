"""Ratings asked for where they are worth most, against ratings at random.

The small LLM is a worse one than its prior says, so that there is something to learn: which
requests it must not get. Both ways rate the same share of the same requests; load puts no bias on
the large LLM, which the requests need that the small one must not get.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from echolm.serving.serve import ServeOptions, model_repositories

from echolm_lab.experiments.bench import Bench, RatedRun
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.models.noise import worse_repository
from echolm_lab.policies.base import Reply
from echolm_lab.report.check import Check
from echolm_lab.report.curves import ratings_until, rolling

_SHARE = 0.95
"""Of the way from the first scores to the last ones of rating at random."""


async def run(bench: Bench) -> Outcome:
    """Two servers, the same stream, the same share rated."""
    sizes, past = bench.sizes, bench.past()
    items = bench.stream(sizes.solicit_requests)
    core, _ = model_repositories(ServeOptions())
    target = bench.work_dir / f"seed-{bench.seed}" / "worse-solicit"
    repository = worse_repository(core.parent, target, sizes.noise, bench.seed)
    changes = {"routing": {"solicit_share": sizes.solicit_share, "load_bias": 0.0}}
    dice = random.Random(bench.seed)
    rules: dict[str, Callable[[Reply], bool]] = {
        "random": lambda reply: dice.random() < sizes.solicit_share,
        "solicited": lambda reply: reply.solicit_feedback,
    }
    rated: dict[str, RatedRun] = {}
    for name, rule in rules.items():
        async with bench.serve(f"solicit-{name}", past, changes, repository=repository) as site:
            rated[name] = await site.answer_and_rate(
                items, rule, f"ratings: {name}", sizes.calm_concurrency
            )
    last = max(1, len(items) // 4)
    final = {name: float(np.mean(run.scores[-last:])) for name, run in rated.items()}
    start = float(np.mean([run.scores[: sizes.window] for run in rated.values()]))
    level = start + _SHARE * (final["random"] - start)
    needed = {
        name: ratings_until(run.scores, run.ratings, level, sizes.window)
        for name, run in rated.items()
    }
    asked, by_chance = needed["solicited"], needed["random"]
    # Where nothing was gained, there is nothing to compare.
    ratio = asked / by_chance if level > start and asked is not None and by_chance else float("nan")
    return Outcome(
        checks=(
            Check("ratings needed, solicited over random", 0.5, ratio, "at_most"),
            Check(
                "final score, solicited over random",
                0.99,
                final["solicited"] / max(final["random"], 1e-9),
            ),
        ),
        figures={
            "rows": {
                name: {
                    "ratings": run.total,
                    "final": final[name],
                    "needed": needed[name],
                    "curve": rolling(run.scores, sizes.window).tolist(),
                    "ratings_before": list(run.ratings),
                }
                for name, run in rated.items()
            },
            "start": start,
            "level": level,
            "window": sizes.window,
        },
    )
