"""Requests come three times as fast as the large LLM can answer, for a minute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from echolm_lab.experiments.bench import Bench
from echolm_lab.experiments.load import Record, open_loop, scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.report.check import Check
from echolm_lab.report.progress import Stage

_CALM, _BURST = 0.6, 3.0  # of what the large LLM alone can serve
_RATED = 0.2
_BIN_S = 5.0


async def run(bench: Bench) -> Outcome:
    """Calm, burst, calm again, in one open loop."""
    sizes, dice = bench.sizes, random.Random(bench.seed)
    async with bench.serve("burst", bench.past()) as site:
        await site.answer_and_rate(
            bench.stream(sizes.burst_learning),
            lambda reply: dice.random() < _RATED,
            concurrency=sizes.calm_concurrency,
        )
        large = await site.answer(
            site.large(), bench.stream(max(8, sizes.requests // 2), part=1), "large LLM's capacity"
        )
        capacity = large.steady_throughput
        parts = (
            (_CALM * capacity, sizes.calm_s),
            (_BURST * capacity, sizes.burst_s),
            (_CALM * capacity, sizes.back_s),
        )
        arrivals: list[float] = []
        start = 0.0
        for part, (rate, seconds) in enumerate(parts):
            times = bench.arrivals(max(1, round(rate * seconds)), rate, part)
            arrivals += [start + time for time in times if time <= seconds]
            start += seconds
        items = bench.stream(len(arrivals), part=2)
        with Stage(bench.console, f"burst of {_BURST * capacity:.0f}/s", len(items)) as stage:
            run = await open_loop(site.echolm(), items, arrivals, stage.step)
    return _judge(run.records, scores(run), arrivals, sizes.calm_s, sizes.burst_s, capacity)


def _judge(
    records: Sequence[Record],
    grades: Sequence[float],
    arrivals: Sequence[float],
    calm_s: float,
    burst_s: float,
    capacity: float,
) -> Outcome:
    at, end = np.array(arrivals), calm_s + burst_s
    latency = np.array([r.latency_s for r in records])
    offloaded = np.array([r.reply is not None and r.reply.llm != "large_llm" for r in records])
    # The first seconds still fill the server.
    calm, burst, back = at < calm_s, (at >= calm_s) & (at < end), at >= end
    p99 = {
        name: float(np.quantile(latency[rows], 0.99)) if rows.any() else float("nan")
        for name, rows in (("calm", calm), ("burst", burst), ("back", back))
    }
    share = {
        name: float(offloaded[rows].mean()) if rows.any() else float("nan")
        for name, rows in (("calm", calm), ("burst", burst), ("back", back))
    }
    returned = time_to_return(at[back] - end, offloaded[back], share["calm"])
    lost = sum(record.reply is None for record in records)
    return Outcome(
        checks=(
            Check("burst: lost requests", 0, float(lost), "at_most"),
            Check("burst: p99 over its calm value", 3.0, p99["burst"] / p99["calm"], "at_most"),
            Check("burst: offload share above calm", 0.01, share["burst"] - share["calm"]),
            Check("burst: seconds until offload is back", 30.0, returned, "at_most"),
        ),
        figures={
            "capacity": capacity,
            "requests": len(records),
            "p99_s": p99,
            "offload_share": share,
            "mean_score": {
                "calm": float(np.array(grades)[calm].mean()),
                "burst": float(np.array(grades)[burst].mean()) if burst.any() else float("nan"),
            },
            "errors": sorted({r.error for r in records if r.error})[:5],
            "calm_s": calm_s,
            "burst_s": burst_s,
            "timeline": _timeline(at, latency, offloaded),
        },
    )


def time_to_return(
    at: Any, offloaded: Any, calm_share: float, window_s: float = 10.0, tolerance: float = 0.1
) -> float:
    """Seconds from which a window's offload share is at most ``tolerance`` over the calm one.

    Args:
        at: FP64 [n], arrivals since the burst's end, ascending.
        offloaded: BOOL [n].

    Returns:
        Infinity if that never happens.
    """
    for start in np.arange(0.0, float(at[-1]) if len(at) else 0.0, 1.0):
        rows = (at >= start) & (at < start + window_s)
        if rows.any() and float(offloaded[rows].mean()) <= calm_share + tolerance:
            return float(start)
    return float("inf")


def _timeline(at: Any, latency: Any, offloaded: Any) -> list[dict[str, float]]:
    """Offload share and latency of every few seconds."""
    bins = (at // _BIN_S).astype(int)
    return [
        {
            "second": float(number * _BIN_S),
            "requests": int((bins == number).sum()),
            "offload_share": float(offloaded[bins == number].mean()),
            "p50_s": float(np.quantile(latency[bins == number], 0.5)),
            "p99_s": float(np.quantile(latency[bins == number], 0.99)),
        }
        for number in np.unique(bins).tolist()
    ]
