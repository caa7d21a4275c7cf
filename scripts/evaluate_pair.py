#!/usr/bin/env python3
"""Evaluate the pair's OpenVINO LLMs on the workload: quality by domain, and requests/s.

Conditions, all on the same live requests (one-offs and late intents included):
the large LLM alone; the small alone; the small with 1 to 4 relevant examples;
with relevant ones among distracting ones (look-alikes and near relatives
first); with examples of other intents only; and, with ``--embedder``, the
nearest past answer returned as it is, as a semantic cache does.

Each cell is the mean score; ``seen`` and ``unseen`` are intents that the small
LLM met in training or never did. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from echolm_lab.models.openvino_pair import (
    SMALL_CONDITIONS,
    Llm,
    Progress,
    answer,
    graded,
    measure_speed,
    nearest_past_answers,
    summary,
    table,
)
from echolm_lab.tasks import Workload
from echolm_lab.tasks.episodes import Trials
from echolm_lab.tasks.prompt import render

LOCAL = Path(__file__).resolve().parents[1] / "model_repository" / "local"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", type=Path, default=LOCAL / "small_llm/1/openvino")
    parser.add_argument("--large", type=Path, default=LOCAL / "large_llm/1/openvino")
    parser.add_argument("--requests", type=int, default=400, help="per condition (default 400)")
    parser.add_argument("--seed", type=int, default=7, help="of the requests")
    parser.add_argument("--batch", type=int, default=32, help="sequences at once (default 32)")
    parser.add_argument("--max-tokens", type=int, default=170)
    parser.add_argument("--embedder", type=Path, help="folder made by scripts/build_embedder.py")
    parser.add_argument("--past", type=int, default=4000, help="past requests for --embedder")
    parser.add_argument("--no-speed", action="store_true", help="quality only")
    args = parser.parse_args(argv)
    for folder in (args.small, args.large):
        if not (folder / "openvino_model.xml").exists():
            print(f"{folder} holds no openvino_model.xml", file=sys.stderr)
            return 1
    workload = Workload(seed=0)
    items = workload.stream(args.requests, seed=args.seed, phase="live")
    trials = Trials(workload, items, seed=args.seed)
    progress = Progress(args.requests * (1 + len(SMALL_CONDITIONS)))
    small = Llm(args.small, args.batch, args.max_tokens)
    large = Llm(args.large, args.batch, args.max_tokens)

    report = {}
    rows = list(trials())
    report["large alone"] = summary(graded(rows, answer(large, rows, progress, "large alone")))
    for name, condition in SMALL_CONDITIONS.items():
        rows = list(trials(*condition))
        report[name] = summary(graded(rows, answer(small, rows, progress, name)))
    if args.embedder:
        past = workload.stream(args.past, seed=args.seed + 1, phase="past")
        texts = nearest_past_answers(args.embedder, past, items)
        report["nearest past answer"] = summary(graded(trials(), texts))
    print(file=sys.stderr)
    print(table(report))

    speed = {}
    if not args.no_speed:
        count = max(args.batch * 4, 64)
        other = Trials(workload, workload.stream(count, seed=args.seed + 2, phase="live"))
        for name, (llm, examples) in {
            "large alone": (large, 0),
            "small alone": (small, 0),
            "small, 1 example": (small, 1),
            "small, 2 examples": (small, 2),
            "small, 4 examples": (small, 4),
        }.items():
            speed[name] = measure_speed(
                llm, [render(t.item.text, t.examples) for t in other(examples)]
            )
        print(
            f"\n{'speed, batch ' + str(args.batch):28s}{'requests/s':>12s}{'CPU ms/request':>16s}"
        )
        for name, row in speed.items():
            print(f"{name:28s}{row['requests_per_s']:12.1f}{row['cpu_ms_per_request']:16.1f}")
    print(
        json.dumps(
            {"requests": args.requests, "seed": args.seed, "quality": report, "speed": speed}
        )
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
