#!/usr/bin/env python3
"""Measure the path without generation: tokenizer, embedder, Milvus search, router.

Both LLMs are replaced by an engine that answers at once, in two processes each; everything else
is the local profile, over a store with many examples of the demo workload. The load comes from
perf_analyzer, so that the client takes little of the CPU. Prints a table and ends with one
JSON line. The store is kept in build/bench and filled only once.

With --interactions the path is measured alone and while so many interactions a second are admitted
to a full store, each of which makes another example go; best at a --concurrency that leaves the CPU
room.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from echolm.serving.serve import ServeOptions, prepare_embedder, running_server
from echolm.settings.loading import load_settings
from echolm_lab.experiments import perf_analyzer
from echolm_lab.experiments.path import (
    ADMITTED,
    beside_admissions,
    dummy_repository,
    full_store,
    measure,
)
from echolm_lab.experiments.store import fill
from echolm_lab.report.progress import Stage
from echolm_lab.tasks import Workload
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


def listed(figures: Mapping[str, float]) -> str:
    """Figures in a line."""
    return "  ".join(f"{name} {np.round(value, 1)}" for name, value in figures.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4_000, help="measured, after a fifth more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml")
    parser.add_argument(
        "--interactions", type=float, default=0.0, help="a second, that are admitted meanwhile"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="a second: echolm also under a fixed load"
    )
    options = parser.parse_args()
    console = Console(stderr=True)
    data_dir = ROOT / "build" / "bench" / f"path-{options.examples}"
    # Examples stay as they are, so that every run searches the same store.
    loaded = load_settings(options.config)
    settings = loaded.model_copy(
        update={
            "data_dir": data_dir,
            "examples": loaded.examples.model_copy(update={"enabled": False}),
        }
    )
    workload = Workload(seed=0)
    prepare_embedder(settings, console.print)
    filled = data_dir / "filled"
    if not filled.exists():
        shutil.rmtree(data_dir, ignore_errors=True)
        data_dir.mkdir(parents=True)
        items = workload.stream(options.examples, seed=options.seed, phase="past")
        with Stage(console, "storing examples", len(items)) as stage:
            fill(settings, [(item.text, item.answer) for item in items], stage.step_by)
        filled.touch()
    texts = [item.text for item in workload.stream(2_000, seed=options.seed + 1, phase="live")]
    with tempfile.TemporaryDirectory() as work:
        inputs = perf_analyzer.write_inputs(Path(work) / "inputs.json", texts)
        # Of what `echolm build` wrote, with as many processes as were asked for there.
        built = options.config.parent / "core" if options.config else None
        core = built if built and built.is_dir() else ROOT / "model_repository" / "core"
        repositories = (core, dummy_repository(Path(work) / "models"))
        serve = ServeOptions(
            profile=None, model_repositories=repositories, http_port=0, grpc_port=0, metrics_port=0
        )
        if options.interactions:
            settings = full_store(settings, Path(work) / "data", options.examples)
            interactions = workload.stream(ADMITTED, seed=options.seed + 2, phase="past")
        # Triton's own statistics are read, and perf_analyzer reads the models' configurations.
        triton = settings.triton.model_copy(update={"restrict": False})
        settings = settings.model_copy(update={"triton": triton})
        with running_server(settings, serve, progress=console.print) as endpoints:
            if options.interactions:
                results = beside_admissions(endpoints, inputs, interactions, options, settings)
            else:
                load = [f"--concurrency-range={options.concurrency}"]
                results = {"echolm": measure("echolm", endpoints.grpc_url, inputs, options, load)}
                if options.rate:
                    # Arrivals at random, as users come.
                    load = [f"--request-rate-range={options.rate}"]
                    load += ["--request-distribution=poisson"]
                    results[f"echolm at {options.rate:g}/s"] = measure(
                        "echolm", endpoints.grpc_url, inputs, options, load
                    )
    report: dict[str, Any] = {"examples": options.examples, "concurrency": options.concurrency}
    if options.interactions:
        report["interactions"] = options.interactions
        report["p99_ratio"] = results["beside admissions"]["p99_ms"] / results["alone"]["p99_ms"]
        print(f"{report['p99_ratio']:.2f} times the p99 latency beside admissions")
    for name, row in results.items():
        print(f"{name:18} {listed({k: v for k, v in row.items() if k != 'stages'})}")
        for stage, parts in row["stages"].items():
            print(f"  {stage:16} {listed(parts)}")
    print(json.dumps(report | {"models": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
