#!/usr/bin/env python3
"""Check off-policy estimates against the truth, on logs of a simulated router.

A simulation without LLMs: requests, true qualities and callers are invented; contexts, bandit,
solicitation and the sampling of judgements are EchoLM's, with the default settings and a judge.
For each policy, over seeds: its true quality, by how much the doubly robust estimate deviates from
it, the standard error that the estimate claims, in how many seeds the truth lies within two of
them, and by how much an estimate deviates that counts all ratings alike. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence

# As `echolm serve` sets it: more threads only spin on matrices of this size.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from echolm_lab.experiments.off_policy import ESTIMATORS, Comparison, simulate
from rich.console import Console
from rich.progress import track
from rich.table import Table


def summary(seeds: Sequence[Comparison]) -> dict[str, object]:
    """Figures of one policy over seeds."""
    truth = np.array([c.truth for c in seeds])
    report: dict[str, object] = {"truth": round(float(truth.mean()), 4)}
    for kind in ESTIMATORS:
        deviations = np.array([c.estimates[kind].value for c in seeds]) - truth
        errors = np.array([c.estimates[kind].standard_error for c in seeds])
        report[kind] = {
            "mean_deviation": round(float(deviations.mean()), 4),
            "largest_deviation": round(float(np.abs(deviations).max()), 4),
            "standard_error": round(float(errors.mean()), 4),
            "within_two": round(float((np.abs(deviations) <= 2 * errors).mean()), 3),
        }
    if all(c.naive for c in seeds):
        naive = np.array([c.naive.value for c in seeds if c.naive])
        report["naive_mean_deviation"] = round(float((naive - truth).mean()), 4)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=200_000, help="that the router answers")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--llms", type=int, choices=(2, 3), nargs="+", default=[2, 3])
    parser.add_argument("--cost-weight", type=float, default=0.2, help="to estimate; served: 0.05")
    options = parser.parse_args()
    console, report = Console(), {}
    for llms in options.llms:
        found: dict[str, list[Comparison]] = defaultdict(list)
        for seed in track(range(options.seeds), f"{llms} LLMs", console=Console(stderr=True)):
            for one in simulate(llms, options.requests, options.cost_weight, seed):
                found[one.policy].append(one)
        table = Table(title=f"{llms} LLMs, doubly robust", title_justify="left")
        for column in ("policy", "truth", "off by", "most", "std. error", "within 2", "naive"):
            left = column == "policy"
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        report[llms] = {policy: summary(seeds) for policy, seeds in found.items()}
        for policy, figures in report[llms].items():
            robust = figures["doubly robust"]
            assert isinstance(robust, dict)
            naive = figures.get("naive_mean_deviation")
            table.add_row(
                policy,
                f"{figures['truth']:.3f}",
                f"{robust['mean_deviation']:+.3f}",
                f"{robust['largest_deviation']:.3f}",
                f"{robust['standard_error']:.3f}",
                f"{robust['within_two']:.0%}",
                "" if naive is None else f"{naive:+.3f}",
            )
        console.print(table)
    print(json.dumps({"requests": options.requests, "seeds": options.seeds, "llms": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
