"""A share of the stored answers is flawed: how much of the loss does replay win back, at what cost?

The judge of replay is ``similarity``, which knows no right answers: of the LLM's samples and the
stored answer it takes the one that the others agree with most.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from echolm.errors import UnavailableError

from echolm_lab.experiments.bench import FLUSH_S, Bench, Changes, Site
from echolm_lab.experiments.load import scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.policies.llm import LLMPolicy
from echolm_lab.report.check import Check
from echolm_lab.tasks import PastInteraction, WorkItem
from echolm_lab.tasks.corruption import corrupt

_CHANGES: Changes = {
    "judging": {"kind": "similarity", "sample_share": 0.0},
    "routing": {"warm_up_ratings": 0},
}
_TOKENS = ("echolm_llm_prompt_tokens_total", "echolm_llm_generated_tokens_total")


async def run(bench: Bench) -> Outcome:
    """Mean score of offloaded requests over flawless, flawed and replayed examples."""
    sizes, clean = bench.sizes, bench.past()
    flawed = corrupt(clean, sizes.flawed, bench.seed)
    perfect = [PastInteraction(past.item, past.item.answer) for past in clean]
    stream = bench.stream(sizes.replay_learning + sizes.replay_requests)
    learning, new = stream[: sizes.replay_learning], stream[sizes.replay_learning :]
    means: dict[str, dict[str, float]] = {}
    cost: dict[str, Any] = {}
    served = 0.0
    for name, interactions in (("perfect", perfect), ("flawed", flawed)):
        dice = random.Random(bench.seed)
        async with bench.serve(f"replay-{name}", interactions, _CHANGES) as site:
            await site.answer_and_rate(
                learning,
                lambda reply, dice=dice: dice.random() < sizes.replay_rated,  # type: ignore[misc]
                f"echolm learns, {name} store",
                sizes.calm_concurrency,
            )
            means[name] = await _offloaded(site, new, f"{name} store", sizes.calm_concurrency)
            if name == "flawed":
                await asyncio.sleep(FLUSH_S)
                served = await _tokens(site)
                cost = await replay(site.settings.data_dir, round(sizes.replay_top * len(flawed)))
                between = await _tokens(site)
                means["replayed"] = await _offloaded(
                    site, new, "after replay", sizes.calm_concurrency
                )
                served += await _tokens(site) - between
    before, after, best = (
        means[name]["offloaded_score"] for name in ("flawed", "replayed", "perfect")
    )
    lost = best - before
    return Outcome(
        checks=(
            Check(
                "replay: share won back of what flawed answers cost",
                0.5,
                (after - before) / lost if lost > 0 else float("nan"),
            ),
            Check("replay: tokens over those served", 0.02, cost["tokens"] / served, "at_most"),
        ),
        figures={
            "means": means,
            "replay": cost,
            "served_tokens": served,
            "flawed_examples": sum(past.corruption is not None for past in flawed),
        },
    )


async def _offloaded(
    site: Site, items: Sequence[WorkItem], title: str, concurrency: int
) -> dict[str, float]:
    """Scores of one pass, from which nothing is learnt or stored."""
    policy = LLMPolicy("echolm", site.client, "auto", "no-store")
    answers = await site.answer(policy, items, title, concurrency)
    grades = np.array(scores(answers))
    rows = np.array([r.reply is not None and r.reply.llm != "large_llm" for r in answers.records])
    return {
        "offloaded_score": float(grades[rows].mean()) if rows.any() else float("nan"),
        "mean_score": float(grades.mean()),
        "offload_share": float(rows.mean()),
    }


async def _tokens(site: Site) -> float:
    """Tokens that the LLMs have read and written so far."""
    await asyncio.sleep(FLUSH_S)
    stats = await site.client.stats()
    return sum(stats.value(name, model=llm.model) for name in _TOKENS for llm in site.settings.llms)


async def replay(data_dir: Path, most: int) -> dict[str, Any]:
    """``echolm examples replay`` on a running server's directory; gives what it reports.

    Raises:
        UnavailableError: it failed.
    """
    command = (*("-m", "echolm", "examples", "replay", "--json"), f"--data-dir={data_dir}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, f"--number={most}", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode != 0:
        raise UnavailableError(
            f"echolm examples replay: expected exit status 0, got {process.returncode}"
        )
    report: dict[str, Any] = json.loads(out)
    return report
