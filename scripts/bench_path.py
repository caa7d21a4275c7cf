#!/usr/bin/env python3
"""Measure the path without generation: tokenizer, embedder, Milvus search, router.

Both LLMs are replaced by an engine that answers at once; everything else is the local
profile, over a store with many examples of the demo workload. The load comes from NVIDIA's
perf_analyzer, so that the client takes little of the CPU. Prints a table and ends with one
JSON line. The store is kept in build/bench and filled only once.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import perf_analyzer
from echolm.evaluation.progress import Stage
from echolm.evaluation.store import fill
from echolm.serving.serve import ServeOptions, prepare_embedder, running_server
from echolm.settings import load_settings
from echolm.workload import Workload
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


def instant_repository(directory: Path) -> Path:
    """The local profile's models, with LLMs that answer at once."""
    source = ROOT / "model_repository" / "local"
    shutil.copytree(source / "embedder", directory / "embedder")
    for name in ("small_llm", "large_llm"):
        (directory / name / "1").mkdir(parents=True)
        shutil.copy(source / name / "1" / "model.py", directory / name / "1")
        # The same tensors and scheduling; only the engine and its options are others.
        lines = (source / name / "config.pbtxt").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("parameters")]
        kept.append('parameters { key: "engine" value: { string_value: "instant" } }')
        (directory / name / "config.pbtxt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return directory


def measure(model: str, url: str, inputs: Path, options: argparse.Namespace) -> dict[str, float]:
    """perf_analyzer at one concurrency: requests/s and latency in milliseconds."""
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.csv"
        done = perf_analyzer.run(
            ["-m", model, "-i", "grpc", "-u", url, "--async", f"--input-data={inputs}"]
            + [f"--concurrency-range={options.concurrency}", "-f", str(report)]
            + [f"--warmup-request-count={options.requests // 5}"]
            + [f"--request-count={options.requests}"]
        )
        if done.returncode or not report.exists():
            raise SystemExit(f"bench_path: perf_analyzer failed on {model}")
        row = next(csv.DictReader(report.open(encoding="utf-8")))
    return {
        "requests_per_s": float(row["Inferences/Second"]),
        "p50_ms": float(row["p50 latency"]) / 1e3,
        "p90_ms": float(row["p90 latency"]) / 1e3,
        "p99_ms": float(row["p99 latency"]) / 1e3,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4_000, help="measured, after a fifth more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, default=None)
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
        repositories = (
            ROOT / "model_repository" / "core",
            instant_repository(Path(work) / "models"),
        )
        serve = ServeOptions(
            profile=None, model_repositories=repositories, http_port=0, grpc_port=0, metrics_port=0
        )
        with running_server(settings, serve, progress=console.print) as endpoints:
            results = {
                model: measure(model, endpoints.grpc_url, inputs, options)
                for model in ("retrieval", "echolm")
            }
    for model, row in results.items():
        figures = "  ".join(f"{name} {np.round(value, 1)}" for name, value in row.items())
        print(f"{model:10} {figures}")
    print(
        json.dumps(
            {"examples": options.examples, "concurrency": options.concurrency, "models": results}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
