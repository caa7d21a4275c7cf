"""The world changes twice: new intents come, then the small LLM is replaced by a worse one.

All answers are rated here, so that ratings and requests are counted alike, and load puts no bias
on the large LLM, which all requests may need in the end: nothing but quality and cost decides.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from echolm.serving.serve import ServeOptions, model_repositories

from echolm_lab.experiments.bench import Bench, Changes, RatedRun, Site
from echolm_lab.experiments.load import scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.models.noise import SMALL_LLM, worse_repository
from echolm_lab.report.check import Check
from echolm_lab.report.curves import recovered_after, rolling
from echolm_lab.tasks import WorkItem

_SHARE = 0.98
_NEW_INTENTS = 0.35
_CHANGES: Changes = {"routing": {"load_bias": 0.0}}


@dataclass(frozen=True)
class Phase:
    """What followed one change.

    Attributes:
        reachable: the best fixed policy's mean score on the last of the same requests: of the
            large LLM alone or the small one with examples.
        back_after: ratings until a window's mean was back at 0.98 of it; None if never.
        final: echolm's mean score on the last of them.
    """

    name: str
    reachable: float
    back_after: int | None
    final: float
    offload: float
    curve: list[float]


async def run(bench: Bench) -> Outcome:
    """New intents, then a worse small LLM, on one data directory."""
    sizes = bench.sizes
    before = bench.workload.stream(sizes.drift_before, seed=100 * bench.seed, phase="past")
    items = bench.stream(2 * sizes.drift_ratings, late=_NEW_INTENTS)
    first, second = items[: sizes.drift_ratings], items[sizes.drift_ratings :]
    async with bench.serve("drift", bench.past(), _CHANGES) as site:
        dice = random.Random(bench.seed)
        await _answer(site, bench, before, "before the drift", lambda: dice.random() < 0.2)
        rated = await _answer(site, bench, first, "new intents")
        phases = [await _phase("new intents", bench, site, first, rated)]
        data_dir = site.endpoints.data_dir
    core, _ = model_repositories(ServeOptions())
    target = bench.work_dir / f"seed-{bench.seed}" / "worse"
    repository = worse_repository(core.parent, target, sizes.noise, bench.seed)
    llms = [
        {**llm.model_dump(), "revision": "worse"} if llm.name == SMALL_LLM else llm.model_dump()
        for llm in bench.settings.llms
    ]
    async with bench.serve(
        "worse small LLM", [], _CHANGES, llms=llms, repository=repository, data_dir=data_dir
    ) as site:
        rated = await _answer(site, bench, second, "a worse small LLM")
        phases.append(await _phase("a worse small LLM", bench, site, second, rated))
    return Outcome(
        checks=tuple(
            Check(
                f"after {phase.name}: ratings until back at {_SHARE} of the reachable",
                sizes.drift_ratings,
                float("inf") if phase.back_after is None else float(phase.back_after),
                "at_most",
            )
            for phase in phases
        )
        + tuple(
            Check(
                f"after {phase.name}: last scores over the reachable",
                _SHARE,
                phase.final / max(phase.reachable, 1e-9),
            )
            for phase in phases
        ),
        figures={"phases": [vars(phase) for phase in phases], "window": sizes.window},
    )


async def _answer(
    site: Site, bench: Bench, items: list[WorkItem], title: str, rated: Any = None
) -> RatedRun:
    return await site.answer_and_rate(
        items,
        (lambda reply: True) if rated is None else (lambda reply: bool(rated())),
        title,
        bench.sizes.calm_concurrency,
    )


async def _phase(
    name: str, bench: Bench, site: Site, items: list[WorkItem], rated: RatedRun
) -> Phase:
    """What can be reached is measured on the phase's last requests, to save time."""
    last = items[-2 * bench.sizes.window :]
    fixed = [
        float(np.mean(scores(await site.answer(policy, last, f"reachable: {policy.name}"))))
        for policy in (site.large(), site.small_with_examples())
    ]
    reachable = max(fixed)
    return Phase(
        name,
        reachable,
        recovered_after(rated.scores, _SHARE * reachable, bench.sizes.window),
        float(np.mean(rated.scores[-len(last) :])),
        float(np.mean(rated.offloaded[-len(last) :])),
        rolling(rated.scores, bench.sizes.window).tolist(),
    )
