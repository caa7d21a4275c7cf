#!/usr/bin/env python3
"""Measure what a streamed answer costs the front: core-ms an answer and a piece, time to the first.

A dummy LLM gives a piece every few milliseconds. For each interval of limits.stream_interval_ms a
server is started, and all are measured in turn in the same run: the CPU time of Triton, the front
door in it included, and of the router over the answers that they streamed. Prints a table and ends
with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from echolm.settings import Settings
from echolm_lab.experiments.streaming import Measured, fronts, measure


def summary(rounds: list[Measured], pieces: int) -> dict[str, float]:
    """Figures of one interval over its rounds."""
    cpu = [sum(one.cpu_ms.values()) for one in rounds]
    first = np.concatenate([one.first_ms for one in rounds])
    total = np.concatenate([one.total_ms for one in rounds])
    parts = {
        f"{name}_ms": float(np.mean([one.cpu_ms[name] for one in rounds]))
        for name in rounds[0].cpu_ms
    }
    return {
        "core_ms_an_answer": float(np.mean(cpu)),
        "core_ms_a_piece": float(np.mean(cpu)) / pieces,
        **parts,
        "responses": float(np.mean([one.responses for one in rounds])),
        "first_p50_ms": float(np.quantile(first, 0.5)),
        "first_p90_ms": float(np.quantile(first, 0.9)),
        "total_p50_ms": float(np.quantile(total, 0.5)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pieces", type=int, default=64, help="of an answer")
    parser.add_argument("--piece-ms", type=float, default=8.0, help="time to each piece")
    parser.add_argument("--concurrency", type=int, default=4, help="streams at a time")
    parser.add_argument("--answers", type=int, default=40, help="of a round")
    parser.add_argument("--rounds", type=int, default=5, help="of each interval, in turn")
    parser.add_argument(
        "--intervals", type=float, nargs="+", default=[0.0, 40.0], help="in milliseconds"
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as work,
        fronts(
            Settings(), Path(work), options.intervals, options.pieces, options.piece_ms
        ) as running,
    ):
        rounds: list[list[Measured]] = [[] for _ in running]
        load = (options.concurrency, options.pieces)
        for front in running:  # connections are made, code is warm
            measure(front, options.concurrency, *load)
        for _ in range(options.rounds):
            for front, measured in zip(running, rounds, strict=True):
                measured.append(measure(front, options.answers, *load))
    results = {
        f"{interval:g} ms": summary(measured, options.pieces)
        for interval, measured in zip(options.intervals, rounds, strict=True)
    }
    for name, row in results.items():
        print(f"{name:8} " + "  ".join(f"{key} {value:.2f}" for key, value in row.items()))
    report = {"pieces": options.pieces, "piece_ms": options.piece_ms}
    print(json.dumps({**report, "concurrency": options.concurrency, "intervals": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
