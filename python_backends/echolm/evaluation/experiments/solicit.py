"""Ratings asked for where they are worth most, against ratings at random.

The small LLM is a worse one than its prior says, so that there is something to learn: which
requests it must not get. Both ways rate the same share of the same requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from echolm.evaluation.bench import Bench
from echolm.evaluation.curves import ratings_until, rolling
from echolm.evaluation.degrade import worse_repository
from echolm.evaluation.outcome import Outcome
from echolm.evaluation.policies import Reply
from echolm.evaluation.verdict import Verdict
from echolm.serving.serve import ServeOptions, model_repositories

_SHARE = 0.95
"""Of the way from the first scores to the last."""


async def run(bench: Bench) -> Outcome:
    """Two servers, the same stream, the same share rated."""
    sizes, past = bench.sizes, bench.past()
    items = bench.stream(sizes.solicit_requests)
    core, _ = model_repositories(ServeOptions())
    target = bench.work_dir / f"seed-{bench.seed}" / "worse-solicit"
    repository = worse_repository(core.parent, target, sizes.noise, bench.seed)
    changes = {"routing": {"solicit_share": sizes.solicit_share}}
    dice = random.Random(bench.seed)
    rules: dict[str, Callable[[Reply], bool]] = {
        "random": lambda reply: dice.random() < sizes.solicit_share,
        "solicited": lambda reply: reply.solicit_feedback,
    }
    rows: dict[str, dict[str, Any]] = {}
    for name, rule in rules.items():
        async with bench.serve(f"solicit-{name}", past, changes, repository=repository) as site:
            rated = await site.answer_and_rate(
                items, rule, f"ratings: {name}", sizes.calm_concurrency
            )
        rows[name] = {
            "ratings": rated.total,
            "final": float(np.mean(rated.scores[-max(1, len(items) // 4) :])),
            "needed": ratings_until(rated.scores, rated.ratings, _SHARE, sizes.window),
            "curve": rolling(rated.scores, sizes.window).tolist(),
            "ratings_before": list(rated.ratings),
        }
    asked, by_chance = rows["solicited"]["needed"], rows["random"]["needed"]
    # Where nothing was gained, there is nothing to compare.
    ratio = asked / by_chance if asked is not None and by_chance else float("nan")
    return Outcome(
        verdicts=(
            Verdict("ratings needed, solicited over random", 0.5, ratio, "at_most"),
            Verdict(
                "final score, solicited over random",
                0.99,
                rows["solicited"]["final"] / max(rows["random"]["final"], 1e-9),
            ),
        ),
        figures={"rows": rows, "window": sizes.window},
    )
