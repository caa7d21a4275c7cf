#!/usr/bin/env python3
"""Show what EchoLM does: serve both LLMs on this machine, send live requests, compare.

Starts Triton, Milvus Lite and the two LLMs over a store of examples: past answers of the large
LLM, recorded with scripts/record_past.py. EchoLM answers some requests, of which a share is
rated; and then four policies get the same new requests on the same server: the large LLM alone,
the small one alone, a semantic cache, and EchoLM.
Prints a table and writes build/demo.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from echolm.errors import EchoError
from echolm.serving.build import built_root
from echolm.serving.serve import Endpoints, ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm_lab.experiments.bench import connected
from echolm_lab.experiments.comparison import Plan, PolicyComparison, store_past
from echolm_lab.report.environment import host, versions
from echolm_lab.report.tables import print_comparison
from echolm_lab.tasks.past import recorded_past
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


async def measure(
    options: argparse.Namespace, console: Console, settings: Settings, endpoints: Endpoints
) -> dict[str, Any]:
    """All stages; returns what goes into the JSON file."""
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    async with connected(settings, endpoints, console, options.concurrency) as site:
        report = await PolicyComparison(site, plan).run()
    report["past"]["history"] = options.history
    return report


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--history", type=int, default=3_000, help="past answers of the large LLM in the store"
    )
    parser.add_argument(
        "--learning", type=int, default=1_000, help="requests that EchoLM then answers"
    )
    parser.add_argument("--rated", type=float, default=0.2, help="share of those that is rated")
    parser.add_argument("--requests", type=int, default=400, help="new requests per policy")
    parser.add_argument(
        "--stage-seconds",
        type=float,
        default=90.0,
        help="most for --learning, and for the large LLM's --requests; a slow machine does fewer",
    )
    parser.add_argument("--concurrency", type=int, default=64, help="in flight at saturation")
    parser.add_argument("--latency-seconds", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=1, help="of the requests")
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml")
    parser.add_argument("--profile", default="local", help="of the model repository")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "build" / "demo")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo.json")
    return parser.parse_args(argv)


def main() -> int:
    options = parse_arguments()
    console = Console()
    started = time.monotonic()
    # The past that EchoLM lives through is this run's own.
    shutil.rmtree(options.data_dir, ignore_errors=True)
    try:
        loaded = load_settings(options.config)
        settings: Settings = loaded.model_copy(update={"data_dir": options.data_dir})
        store_past(settings, recorded_past(options.history), console)
        serve = ServeOptions(
            profile=options.profile,
            repository_root=built_root(options.config, options.profile),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
        )
        with running_server(settings, serve, progress=console.print) as endpoints:
            console.print(f"ready after {time.monotonic() - started:.0f} s")
            report = asyncio.run(measure(options, console, settings, endpoints))
    except EchoError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    report["versions"] = versions()
    report["host"] = host()
    report["options"] = {k: v for k, v in vars(options).items() if isinstance(v, int | float)}
    report["seconds"] = time.monotonic() - started
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_comparison(console, report)
    console.print(f"written to {options.output} after {report['seconds']:.0f} s")
    for message in report["errors"]:
        console.print(message, style="red", markup=False)
    return 1 if any(row["failed"] for row in report["policies"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
