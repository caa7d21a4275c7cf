#!/usr/bin/env python3
"""Measure an LLM model directory through its engine, without Triton.

Prints a table (requests/s, time to first token, tokens/s for each setting) and ends with one
JSON line. Prompts are random words, so outputs mean nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from echolm.engines import ENGINES, LLMEngine, create_engine
from echolm.errors import EchoError
from echolm.primitives import Sampling
from echolm_lab.experiments.arguments import numbers, option
from echolm_lab.experiments.engine_load import EngineFigures, measure_engine
from rich.console import Console
from rich.table import Table

_WORDS = ("list", "files", "older", "than", "days", "in", "folder", "sort", "by", "size")


@dataclass(frozen=True)
class Setting:
    """One row: words per prompt, new tokens per answer, requests in flight."""

    prompt_words: int
    max_tokens: int
    concurrency: int


def prompts(setting: Setting, args: argparse.Namespace) -> Iterator[str]:
    """Random ones that differ, without an end."""
    dice = random.Random(args.seed)

    def words(count: int) -> str:
        return " ".join(dice.choice(_WORDS) for _ in range(count))

    shared = int(setting.prompt_words * args.shared_prefix)
    prefix = words(shared)
    for number in itertools.count():
        yield f"{prefix} {number} {words(setting.prompt_words - shared)}"


def measure(
    engine: LLMEngine, setting: Setting, args: argparse.Namespace, seconds: float
) -> EngineFigures:
    """Run one setting."""
    sampling = Sampling(max_tokens=setting.max_tokens, temperature=args.temperature)
    return measure_engine(
        engine, prompts(setting, args), sampling, setting.concurrency, seconds, args.stream
    )


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path, help="directory of the model's files")
    parser.add_argument("--engine", default="openvino", choices=sorted(set(ENGINES) - {"dummy"}))
    parser.add_argument(
        "--option", type=option, action="append", default=[], metavar="KEY=VALUE",
        help="an option of the engine; may be repeated",
    )  # fmt: skip
    parser.add_argument("--prompt-words", type=numbers, default=[50], metavar="N[,N…]")
    parser.add_argument("--max-tokens", type=numbers, default=[64], metavar="N[,N…]")
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 32], metavar="N[,N…]")
    parser.add_argument("--seconds", type=float, default=5.0, help="per setting")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument(
        "--shared-prefix", type=float, default=0.0, help="share of each prompt that is the same"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument(
        "--no-stream", dest="stream", action="store_false",
        help="ask for whole answers (TTFT is then the latency)",
    )  # fmt: skip
    args = parser.parse_args()
    settings = [
        Setting(*values)
        for values in itertools.product(args.prompt_words, args.max_tokens, args.concurrency)
    ]
    console = Console(stderr=True)
    start = time.perf_counter()
    try:
        engine = create_engine(args.engine, args.model_dir, dict(args.option))
    except EchoError as error:
        print(error, file=sys.stderr)
        return 2
    load_s = time.perf_counter() - start
    rows: list[tuple[Setting, EngineFigures]] = []
    try:
        with console.status("") as status:
            for i, setting in enumerate(settings):
                status.update(f"{i + 1}/{len(settings)}: {setting}")
                measure(engine, setting, args, 0.0)
                rows.append((setting, measure(engine, setting, args, args.seconds)))
    except EchoError as error:
        raise SystemExit(str(error)) from None
    finally:
        engine.close()
    _print(rows, args)
    result: dict[str, Any] = {
        "benchmark": "llm",
        "engine": args.engine,
        "options": dict(args.option),
        "model_dir": args.model_dir.name,
        "stream": args.stream,
        "load_s": round(load_s, 3),
        "host": {"cpus": os.cpu_count(), "machine": platform.machine()},
        "rows": [asdict(setting) | asdict(row) for setting, row in rows],
    }
    print(json.dumps(result))
    return 1 if any(row.failed for _, row in rows) else 0


def _print(rows: Sequence[tuple[Setting, EngineFigures]], args: argparse.Namespace) -> None:
    table = Table(title=f"{args.model_dir} ({args.engine})")
    for head in ("prompt tok", "new tok", "in flight", "requests/s", "tokens/s"):
        table.add_column(head, justify="right")
    for head in ("TTFT p50 ms", "p99", "latency p50 ms", "p99 "):
        table.add_column(head, justify="right")
    for setting, row in rows:
        table.add_row(
            f"{row.prompt_tokens:.0f}", f"{row.output_tokens:.0f}", str(setting.concurrency),
            f"{row.requests_per_s:.1f}", f"{row.tokens_per_s:.0f}", f"{row.ttft_p50_ms:.0f}",
            f"{row.ttft_p99_ms:.0f}", f"{row.latency_p50_ms:.0f}", f"{row.latency_p99_ms:.0f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
