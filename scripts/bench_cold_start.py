#!/usr/bin/env python3
"""How EchoLM begins: new pairs of LLMs, workloads nothing was tuned on, in simulated time.

The product's own parts run in this process; only the LLMs are simulated. Prints what was expected
and measured, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# More threads only spin on matrices of this size.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm_lab.experiments.arguments import at_least_one, option
from echolm_lab.experiments.cold_start import (
    EXPERIMENTS,
    BankingRequests,
    DemoRequests,
    Lab,
    Requests,
)
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.experiments.simulated_llms import PAIRS
from echolm_lab.experiments.simulation import CachedEmbedder
from echolm_lab.report.check import jsonable, summarise
from echolm_lab.tasks.second_workload import SecondWorkload
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """One experiment with one seed."""

    experiment: str
    seed: int
    options: argparse.Namespace


def run(job: Job) -> tuple[Outcome, float]:
    """The outcome and the seconds it took."""
    started = time.monotonic()
    options = job.options
    for key, value in options.set:
        os.environ[f"ECHOLM_{key.replace('.', '__').upper()}"] = value
    settings = load_settings(options.config)
    file = ROOT / "build" / "cold_start" / f"{options.workload}.{job.seed}.npz"
    embedder = CachedEmbedder(settings.embedding, file)
    lab = Lab(settings, embedder, requests_of(options), options.pair, options.asked)

    async def experiment() -> Outcome:
        return await EXPERIMENTS[job.experiment](lab, job.seed)

    outcome = asyncio.run(experiment())
    embedder.save()
    return outcome, time.monotonic() - started


def requests_of(options: argparse.Namespace) -> Requests:
    """The workload that was asked for."""
    if options.workload == "demo":
        return DemoRequests()
    if options.workload == "banking77":
        return BankingRequests(options.banking77)
    return SecondWorkload()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = ", ".join(EXPERIMENTS)
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help=f"of {names}")
    parser.add_argument("--workload", choices=("second", "demo", "banking77"), default="second")
    parser.add_argument(
        "--banking77", type=Path, nargs="+", metavar="CSV", help="files of that workload"
    )
    parser.add_argument(
        "--pair",
        choices=sorted(PAIRS),
        default=None,
        help="of second_workload and calibration; default: mixed, or helped for banking77, "
        "or demo for the demo",
    )
    parser.add_argument("--seeds", type=at_least_one, default=5, help="seeds 1, 2, ...")
    parser.add_argument(
        "--asked", type=float, default=0.0, help="share of solicited ratings that callers give"
    )
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml")
    parser.add_argument(
        "--set", type=option, action="append", default=[], metavar="KEY=VALUE", help="a setting"
    )
    parser.add_argument("--processes", type=at_least_one, default=1)
    parser.add_argument("--windows", action="store_true", help="print all figures, too")
    options = parser.parse_args()
    unknown = set(options.experiments.split(",")) - EXPERIMENTS.keys()
    if unknown:
        parser.error(f"--experiments: expected names of {names}, got {sorted(unknown)}")
    if options.workload == "banking77" and not options.banking77:
        parser.error("--banking77: expected the workload's CSV files, got none")
    defaults = {"second": "mixed", "demo": "demo", "banking77": "helped"}
    options.pair = options.pair or defaults[options.workload]
    return options


def main() -> int:
    options = parse_arguments()
    console = Console(stderr=True)
    prepare_embedder(load_settings(options.config), console.print)
    seeds = range(1, options.seeds + 1)
    report: dict[str, Any] = {}
    with ProcessPoolExecutor(options.processes) as pool:
        for name in options.experiments.split(","):
            jobs = [Job(name, seed, options) for seed in seeds]
            outcomes = []
            for seed, (outcome, seconds) in zip(seeds, pool.map(run, jobs), strict=True):
                console.print(f"{name}, seed {seed}: {seconds:.0f} s")
                outcomes.append(outcome)
            rows = summarise([outcome.checks for outcome in outcomes])
            report[name] = {"checks": rows, "figures": [o.figures for o in outcomes]}
            print(f"{name} ({options.workload})")
            for row in rows:
                sign = "≥" if row["kind"] == "at_least" else "≤"
                value = "none" if row["value"] is None else f"{row['value']:.3f}"
                met = "yes" if row["holds"] else "NO"
                print(
                    f"  {row['measure']:58} {sign} {row['target']:<6g} {value} ± "
                    f"{row['std']:.3f}  {met} ({row['holds_in']}/{len(seeds)})"
                )
            if options.windows:
                print(json.dumps(jsonable(report[name]["figures"]), indent=1))
            sys.stdout.flush()
    print(json.dumps(jsonable({name: part["checks"] for name, part in report.items()})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
