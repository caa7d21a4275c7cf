"""All policies over one server with both LLMs and the embedder on one GPU."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from echolm.serving.build import CONFIGURATION, BuildOptions, LLMChoice, build, built_root
from echolm.serving.serve import ServeOptions, running_server
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from rich.console import Console

from echolm_lab.experiments.baselines import static_routing
from echolm_lab.experiments.bench import Site, connected
from echolm_lab.experiments.comparison import Kept, Plan, PolicyComparison, store_past
from echolm_lab.experiments.gpu.common import (
    LONG_PAST,
    ROLES,
    best_checkpoint,
    engine_options,
    machine,
)
from echolm_lab.experiments.trace import read_trace, window
from echolm_lab.experiments.trace_load import under_arrivals
from echolm_lab.report.quality import HOLDS_QUALITY
from echolm_lab.tasks import Workload
from echolm_lab.tasks.past import PAST_FILE, WORKLOAD_SEED, recorded_past


def evaluate(options: argparse.Namespace) -> None:
    """All policies over one server."""
    console = Console()
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
    longer = options.work / LONG_PAST
    past_file = longer if longer.is_file() else PAST_FILE
    names = ("profile", "embedder", "processes", "concurrency", "history", "labelled")
    trace = read_trace(options.trace) if options.trace else None
    asked = {
        **asdict(plan),
        "trace": [str(options.trace or ""), options.trace_seconds],
        **{name: getattr(options, name) for name in names},
        "past": str(past_file),
        "engines": [
            *(str(getattr(options, role) or best_checkpoint(options.work, role)) for role in ROLES),
            *(getattr(options, f"{role}_memory") for role in ROLES),
            *(list(map(list, getattr(options, f"{part}set"))) for part in ("", "small_", "large_")),
        ],
    }
    file, data = options.work / "evaluate.json", options.work / "data"
    kept = Kept(file)
    if kept.parts.get("asked") != asked or not data.is_dir():
        file.unlink(missing_ok=True)
        for folder in (data, options.work / "served"):
            shutil.rmtree(folder, ignore_errors=True)
        kept = Kept(file)
    if "report" in kept.parts:
        print(f"{file} is there already")
        return
    config = configuration(options)
    settings = without_a_judge(load_settings(config)).model_copy(update={"data_dir": data})
    if not data.is_dir():
        past = recorded_past(options.history, past_file)
        store_past(settings, [(e.item.text, e.response) for e in past], console)
        kept.add("asked", asked)
    kept.add("machine", machine(options))
    serve = ServeOptions(
        profile=options.profile,
        repository_root=built_root(config, options.profile),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )
    started = time.monotonic()
    with running_server(settings, serve, progress=console.print) as endpoints:
        console.print(f"ready after {time.monotonic() - started:.0f} s")

        async def measure() -> None:
            async with connected(settings, endpoints, console, options.concurrency) as site:
                comparison = PolicyComparison(site, plan, kept)
                report = await comparison.run(recorded_past(options.labelled))
                report["small_with_examples"] = await comparison.steady(
                    "small_with_examples", report["latency_rate"]
                )
                if trace is not None:
                    rate = report["latency_rate"]
                    report["trace"] = await kept.part("trace", lambda: under_trace(site, rate))
                kept.add("report", report)

        async def under_trace(site: Site, rate: float) -> list[dict[str, Any]]:
            arrivals = window(trace or [], options.trace_seconds, rate, plan.seed)
            items = Workload(seed=WORKLOAD_SEED).stream(
                len(arrivals), seed=plan.seed + 3, phase="live"
            )
            static = await static_routing(site, recorded_past(options.labelled), HOLDS_QUALITY)
            policies = (site.large(), static, site.echolm())
            return [asdict(row) for row in await under_arrivals(site, policies, items, arrivals)]

        asyncio.run(measure())


def configuration(options: argparse.Namespace) -> Path | None:
    """The echolm.toml to serve by, built if it is a profile for GPUs."""
    if options.profile == "local":
        return None
    output: Path = options.work / "served"
    if not (output / CONFIGURATION).is_file():
        llms = {
            role: LLMChoice(
                str(getattr(options, role) or best_checkpoint(options.work, role)),
                memory=getattr(options, f"{role}_memory"),
                options={**engine_options(options), **dict(getattr(options, f"{role}_set"))},
            )
            for role in ROLES
        }
        choice = BuildOptions(
            options.profile,
            llms,
            output,
            embedder=options.embedder,
            processes=options.processes,
            force=True,
        )
        build(choice, print)
    return output / CONFIGURATION


def without_a_judge(settings: Settings) -> Settings:
    """Settings for the shipped pair, as in the demo: these LLMs know one workload only."""
    llms = tuple(llm.model_copy(update={"can_judge": False}) for llm in settings.llms)
    return settings.model_copy(update={"llms": llms})
