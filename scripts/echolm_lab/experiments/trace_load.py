"""Load as a recorded trace has it, with a mean of 70% of what the large LLM can serve.

The same requests arrive at the same times for every policy. Where arrivals come in bursts, it is
the queues of the busiest seconds that decide the slowest answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from echolm.errors import ConfigurationError

from echolm_lab.experiments.baselines import static_routing
from echolm_lab.experiments.bench import Bench, Site
from echolm_lab.experiments.comparison import LOAD
from echolm_lab.experiments.load import Run, offload_share, open_loop, scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.experiments.trace import window
from echolm_lab.policies.base import AnswerPolicy
from echolm_lab.policies.nearest import CopyNearest
from echolm_lab.report.check import Check
from echolm_lab.report.progress import Stage
from echolm_lab.report.quality import HOLDS_QUALITY, win_rate
from echolm_lab.tasks import WorkItem

P99_REDUCTION = 0.71
"""As published for IC-Cache (arXiv 2501.12689)."""
_SLOW_S = 10.0
_BIN_S = 5.0


@dataclass(frozen=True)
class Row:
    """One policy under the trace.

    Attributes:
        over_10_s: answers that took longer than ten seconds.
    """

    policy: str
    requests: int
    failed: int
    mean_score: float
    win_rate: float
    offload_share: float
    p50_s: float
    p99_s: float
    over_10_s: int

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
            run.latency_quantile(0.5),
            run.latency_quantile(0.99),
            sum(record.latency_s > _SLOW_S for record in run.records),
        )


async def run(bench: Bench) -> Outcome:
    """EchoLM learns, and then every policy meets the same window of the trace."""
    if bench.trace is None:
        raise ConfigurationError("experiment trace: expected --trace FILE, got none")
    sizes, dice, past = bench.sizes, random.Random(bench.seed), bench.past()
    async with bench.serve("trace", past) as site:
        await site.answer_and_rate(
            bench.stream(sizes.trace_learning), lambda reply: dice.random() < sizes.trace_rated
        )
        static = await static_routing(site, past[: sizes.labelled], HOLDS_QUALITY)
        large = await site.answer(
            site.large(), bench.stream(max(8, sizes.requests // 2), part=1), "large LLM's capacity"
        )
        rate = LOAD * large.steady_throughput
        arrivals = window(bench.trace, sizes.trace_s, rate, bench.seed)
        # EchoLM is the last, since it alone learns from what it answers.
        rows = await under_arrivals(
            site,
            (site.large(), static, CopyNearest(site.nearest), site.echolm()),
            bench.stream(len(arrivals), part=2),
            arrivals,
        )
    return Outcome(
        checks=checks(rows),
        figures={
            "policies": [asdict(row) for row in rows],
            "capacity": large.steady_throughput,
            "mean_load": len(arrivals) / sizes.trace_s / large.steady_throughput,
            "peak_load": peak_rate(arrivals) / large.steady_throughput,
        },
    )


async def under_arrivals(
    site: Site,
    policies: Sequence[AnswerPolicy],
    items: Sequence[WorkItem],
    arrivals_s: Sequence[float],
) -> list[Row]:
    """A row for each policy, the large LLM alone first; each waits for its last answer."""
    rows: list[Row] = []
    reference: list[float] = []
    for policy in policies:
        with Stage(site.console, f"{policy.name}: trace", len(items)) as stage:
            run = await open_loop(policy, items, arrivals_s, stage.step)
        reference = reference or scores(run)
        rows.append(Row.of(policy.name, run, reference))
    return rows


def checks(rows: Sequence[Row]) -> tuple[Check, ...]:
    """Of EchoLM against the large LLM alone."""
    by_name = {row.policy: row for row in rows}
    echolm, large = by_name["echolm"], by_name["always_large"]
    return (
        Check("trace: p99 below always_large's", P99_REDUCTION, 1 - echolm.p99_s / large.p99_s),
        Check("trace: win rate against always_large", HOLDS_QUALITY, echolm.win_rate),
        Check("trace: lost requests", 0, float(sum(row.failed for row in rows)), "at_most"),
    )


def peak_rate(arrivals_s: Sequence[float]) -> float:
    """Requests a second in the busiest five seconds."""
    return float(np.bincount((np.asarray(arrivals_s) // _BIN_S).astype(int)).max()) / _BIN_S
