#!/usr/bin/env python3
"""Measure what the gateway costs over the direct gRPC call: core-ms a request and a piece.

A dummy LLM answers. The same requests go to Triton over gRPC and through the gateway, in turn in
the same run, whole and streamed; pieces are not gathered. Counted is the CPU time of the gateway's
processes, and what Triton's take more or less than for the direct call. Prints a table and ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from echolm_lab.experiments.gateway import measure, served

WAYS = ("direct", "gateway", "direct stream", "gateway stream")


KINDS = ("", " stream")


def _all_ms(row: dict[str, float], direct: dict[str, float]) -> float:
    """CPU time of all processes of a request over that of a direct one."""
    return sum(row[key] - direct[key] for key in ("gateway_ms", "triton_ms"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pieces", type=int, default=64, help="of a streamed answer")
    parser.add_argument("--piece-ms", type=float, default=1.0, help="time to each piece")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    parser.add_argument("--requests", type=int, default=800, help="of a round, whole")
    parser.add_argument("--streams", type=int, default=160, help="of a round")
    parser.add_argument("--rounds", type=int, default=3, help="of each way, in turn")
    parser.add_argument("--workers", type=int, default=1, help="processes of the gateway")
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with (
        tempfile.TemporaryDirectory() as work,
        served(Path(work), options.pieces, options.piece_ms, options.workers) as endpoints,
    ):
        for number in range(options.rounds + 1):
            for way in WAYS:
                count = options.streams if "stream" in way else options.requests
                measured = measure(endpoints, way, count, options.concurrency)
                if number:  # before that connections are made, code is warm
                    rounds[way].append(measured)
    results = {
        way: {key: float(np.mean([one[key] for one in measured])) for key in measured[0]}
        for way, measured in rounds.items()
    }
    for way, row in results.items():
        print(f"{way:15} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    over = {way: _all_ms(results[f"gateway{way}"], results[f"direct{way}"]) for way in KINDS}
    pieces = results["gateway stream"]["pieces"]
    report = {
        "core_ms_a_request": over[""],
        "core_ms_a_piece": (over[" stream"] - over[""]) / pieces,
        "concurrency": options.concurrency,
        "workers": options.workers,
        "ways": results,
    }
    print(
        f"over the direct call: {report['core_ms_a_request']:.2f} core-ms a request, "
        f"{report['core_ms_a_piece']:.3f} a piece"
    )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
