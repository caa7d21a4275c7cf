#!/usr/bin/env python3
"""Measure EchoLM against the alternatives on live servers, and each of its parts.

Every experiment replays seeded requests of the demo workload: learning from few ratings,
ablations, corrupted examples, drift, a burst of load, soliciting ratings, the order of
examples, and replay. Policies and settings that cannot share a server get one each, over the same
past. Prints tables with what must hold beside what was measured, draws plots, writes
build/evaluation.json, and ends with one JSON line. The past is the large LLM's recorded answers
(scripts/record_past.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from echolm.errors import EchoError
from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm_lab.experiments import (
    ablations,
    burst,
    corruption,
    drift,
    learning,
    prefix,
    replay,
    solicit,
    trace,
    trace_load,
)
from echolm_lab.experiments.bench import Bench
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.experiments.sizes import QUICK, Sizes
from echolm_lab.report.check import jsonable, summarise
from echolm_lab.report.environment import host, versions
from echolm_lab.report.tables import print_checks, print_policies, print_trace
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS: dict[str, Callable[[Bench], Awaitable[Outcome]]] = {
    "learning": learning.run,
    "ablations": ablations.run,
    "corruption": corruption.run,
    "drift": drift.run,
    "burst": burst.run,
    "solicit": solicit.run,
    "prefix": prefix.run,
    "replay": replay.run,
    "trace": trace_load.run,
}
QUICK_EXPERIMENTS = ("learning", "corruption", "drift", "burst")
"""By default, since every server takes seconds to start; the others can be named."""


def names(text: str) -> list[str]:
    """Experiments from a list with commas."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(EXPERIMENTS):
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(EXPERIMENTS)}, got {', '.join(sorted(unknown))}"
        )
    return chosen


def seeds(text: str) -> list[int]:
    """Seeds from a list with commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers, got {text!r}") from None


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--experiments",
        type=names,
        default=None,
        metavar="NAME,...",
        help=f"of {', '.join(EXPERIMENTS)}; default: all, trace only with --trace; quick: "
        f"{', '.join(QUICK_EXPERIMENTS)}",
    )
    parser.add_argument(
        "--seeds", type=seeds, default=None, metavar="N,...", help="default: 1,2,3; quick: 1"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few requests: shows that it runs, and nothing else"
    )
    parser.add_argument(
        "--trace",
        type=Path,
        default=None,
        metavar="FILE",
        help="CSV of arrivals, for the experiment trace and in place of Poisson's for the burst",
    )
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "evaluation.json")
    parser.add_argument(
        "--plots", type=Path, default=None, help="directory; default: beside the output"
    )
    options = parser.parse_args(argv)
    if options.experiments is None:
        every = [name for name in EXPERIMENTS if name != "trace" or options.trace]
        options.experiments = list(QUICK_EXPERIMENTS) if options.quick else every
    if "trace" in options.experiments and options.trace is None:
        parser.error("--experiments trace: expected --trace FILE as well, got none")
    return options


async def evaluate(options: argparse.Namespace, console: Console, work: Path) -> dict[str, Any]:
    """All experiments with all seeds."""
    sizes = QUICK if options.quick else Sizes()
    arrivals = trace.read_trace(options.trace) if options.trace else None
    settings = load_settings(options.config)
    prepare_embedder(settings, console.print)
    benches = [
        Bench(settings, sizes, seed, console, work, arrivals)
        for seed in options.seeds or ([1] if options.quick else [1, 2, 3])
    ]
    report: dict[str, Any] = {}
    for name in options.experiments:
        outcomes: dict[str, Outcome] = {}
        started = time.monotonic()
        for bench in benches:
            console.rule(f"{name}, seed {bench.seed}")
            outcomes[str(bench.seed)] = await EXPERIMENTS[name](bench)
        rows = summarise([outcome.checks for outcome in outcomes.values()])
        report[name] = {
            "checks": rows,
            "seeds": {seed: outcome.figures for seed, outcome in outcomes.items()},
            "seconds": time.monotonic() - started,
        }
        print_checks(console, name, rows)
    return report


def main() -> int:
    options = parse_arguments()
    console = Console()
    started = time.monotonic()
    try:
        from echolm_lab.report import plots
    except ModuleNotFoundError as error:
        console.print(f"evaluate: {error}; install the extra: pip install -e '.[evaluate]'")
        return 1
    work = Path(tempfile.mkdtemp(prefix="echolm-evaluate-"))
    try:
        experiments = asyncio.run(evaluate(options, console, work))
    except EchoError as error:
        console.print(f"evaluate: {error}", style="red", markup=False)
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report = jsonable(
        {
            "experiments": experiments,
            "quick": options.quick,
            "trace": options.trace.name if options.trace else None,
            "versions": versions(),
            "host": host(),
            "seconds": time.monotonic() - started,
        }
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if "learning" in experiments:
        print_policies(console, report["experiments"]["learning"]["seeds"])
    if "trace" in experiments:
        print_trace(console, report["experiments"]["trace"]["seeds"])
    for file in plots.draw(report, options.plots or options.output.parent / "plots"):
        console.print(f"plot: {file}")
    console.print(f"written to {options.output} after {report['seconds']:.0f} s")
    checks = {
        name: {row["measure"]: row["value"] for row in experiment["checks"]}
        for name, experiment in report["experiments"].items()
    }
    failed = [
        row["measure"]
        for experiment in report["experiments"].values()
        for row in experiment["checks"]
        if not row["holds"]
    ]
    print(json.dumps({"checks": checks, "does_not_hold": failed, "quick": options.quick}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
