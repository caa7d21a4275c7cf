#!/usr/bin/env python3
"""Run NVIDIA's perf_analyzer against a running EchoLM.

The binary is downloaded once into build/perf_analyzer. Without arguments it load-tests `echolm`
over gRPC and HTTP and `echolm_stream` over gRPC, with requests of the demo workload; arguments
after `--` go to perf_analyzer instead. It reads the models' configuration and statistics and may
use shared memory, for which Triton wants the admin key of the data directory:

    scripts/perf_analyzer.py
    scripts/perf_analyzer.py -- -m echolm -i grpc --concurrency-range 1:16:4
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from echolm_lab.experiments.perf_analyzer import VERSION, admin_headers, run, write_inputs
from echolm_lab.tasks import Workload


def default_runs(options: argparse.Namespace, work: Path) -> list[list[str]]:
    """perf_analyzer's arguments for each model and protocol."""
    texts = [item.text for item in Workload(seed=0).stream(200, seed=options.seed, phase="live")]
    unary = write_inputs(work / "unary.json", texts, max_tokens=options.max_tokens)
    stream = write_inputs(work / "stream.json", texts, max_tokens=options.max_tokens, stream=True)
    # A fixed number: with measurement windows it fails where throughput varies, which depends
    # on the machine and not on the requests.
    common = [f"--request-count={options.requests}"]
    concurrency = f"--concurrency-range={options.concurrency}"
    return [
        ["-m", "echolm", "-i", "grpc", "-u", options.grpc_url, concurrency, "--async"]
        + [f"--input-data={unary}", *common],
        ["-m", "echolm", "-i", "http", "-u", options.http_url, concurrency, "--async"]
        + [f"--input-data={unary}", *common],
        ["-m", "echolm_stream", "-i", "grpc", "-u", options.grpc_url, concurrency]
        + ["--async", "--streaming", f"--input-data={stream}", *common],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grpc-url", default="localhost:8001")
    parser.add_argument("--http-url", default="localhost:8000")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--requests", type=int, default=100, help="in each run")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--admin-key-file",
        type=Path,
        help="of the server's data directory (default: admin.key in data_dir of the configuration)",
    )
    parser.add_argument("arguments", nargs="*", help="given to perf_analyzer as they are")
    options = parser.parse_args()
    admin = admin_headers(options.admin_key_file)
    if options.arguments:
        return run([*options.arguments, *admin]).returncode
    results = []
    with tempfile.TemporaryDirectory() as work:
        for arguments in default_runs(options, Path(work)):
            done = run([*arguments, *admin])
            failed = done.returncode != 0 or "Failed" in done.stdout
            results.append({"model": arguments[1], "protocol": arguments[3], "clean": not failed})
    print(json.dumps({"perf_analyzer": VERSION, "runs": results}))
    return 0 if all(result["clean"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
